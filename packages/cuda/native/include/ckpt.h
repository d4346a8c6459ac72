/*
 * ckpt.h - the C ABI between the TypeScript daemon and the native library.
 *
 * Two implementations: libckpt_host.so (POSIX shared memory, threads) and libckpt_cuda.so (CUDA). Rules:
 *   - objects are u32 handles (index and generation, never 0); a stale or foreign handle gives CKPT_ERR_HANDLE
 *   - every function returns a ckpt_status; outputs come last, end in _p and are written only on CKPT_OK
 *   - the text of the last error of the calling thread is read with ckpt_last_error
 *   - every function may be called from any thread; a wait takes timeout_ms and a signal (0: none) whose
 *     CKPT_SIGNAL_ABORT bit ends it from another thread
 *   - nothing throws across this boundary, and nothing calls back into the caller
 *
 * packages/cuda/src/generated.ts is made from this file by scripts/generate-ffi.ts; keep one declaration a line.
 */
#ifndef CKPT_H
#define CKPT_H

#include <stdint.h>

#define CKPT_ABI_VERSION 6
#define CKPT_HANDLE_BYTES 64
#define CKPT_COMMUNICATOR_ID_BYTES 128
#define CKPT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ckpt_status {
  CKPT_OK = 0,
  CKPT_NOT_READY = 1,        /* a query: not done yet; not an error */
  CKPT_ERR_INVALID = 2,      /* an argument is out of range */
  CKPT_ERR_HANDLE = 3,       /* no such object */
  CKPT_ERR_MEMORY = 4,       /* host or device memory is exhausted */
  CKPT_ERR_TIMEOUT = 5,
  CKPT_ERR_ABORTED = 6,      /* the signal's abort bit, or an aborted group */
  CKPT_ERR_IO = 7,           /* a file or shared-memory call failed (the text has path and errno), or a peer process is lost */
  CKPT_ERR_CHANGED = 8,      /* a file changed after it was registered in place */
  CKPT_ERR_LEASE = 9,        /* the read lease on a file was refused */
  CKPT_ERR_DEVICE = 10,      /* a device call failed; the device still works */
  CKPT_ERR_DEVICE_LOST = 11, /* a sticky device error: the process must end */
  CKPT_ERR_UNSUPPORTED = 12, /* not in this library or on this machine */
  CKPT_ERR_STATE = 13        /* the object is not in a state that allows the call */
} ckpt_status;

typedef enum ckpt_signal_bit {
  CKPT_SIGNAL_ABORT = 1, /* ends every wait that was given the signal */
  CKPT_SIGNAL_HTTP = 2,  /* the engine's HTTP request has returned */
  CKPT_SIGNAL_USER = 4
} ckpt_signal_bit;

typedef enum ckpt_buffer_flag {
  CKPT_BUFFER_SHARED = 1 /* POSIX shared memory that another process can map by name */
} ckpt_buffer_flag;

typedef enum ckpt_file_kind {
  CKPT_FILE_DISK = 0,
  CKPT_FILE_TMPFS = 1
} ckpt_file_kind;

/* What the library is started with; the first ckpt_init of the process decides, later ones only check. */
typedef struct ckpt_config {
  uint32_t host_devices;                /* host library: number of virtual devices (1 to 64) */
  uint32_t reserved;
  uint64_t host_device_bytes;           /* host library: memory of each; 0 = what shared memory has free */
  uint64_t host_copy_bytes_per_second;  /* host library: throttle of each stream, for tests; 0 = none */
  uint64_t read_bytes_per_second;       /* throttle of each read, for tests; 0 = none */
} ckpt_config;

typedef struct ckpt_device_info {
  char name[64];
  char uuid[48];      /* "GPU-" and 36 characters, as NVML prints it; the host library derives it from the boot id */
  char pci[32];       /* "" on the host library */
  uint64_t total_bytes;
  int32_t numa_node;  /* -1: unknown */
  uint32_t reserved;
} ckpt_device_info;

typedef struct ckpt_file_info {
  uint64_t bytes;
  uint64_t inode;
  uint64_t device;
  int64_t ctime_ns;
  uint32_t kind;      /* ckpt_file_kind */
  uint32_t leased;    /* 1 while a read lease is held */
} ckpt_file_info;

/* Where a file's bytes are now. */
typedef struct ckpt_file_location {
  uint64_t filesystem;    /* f_type of statfs(2): 0xef53 is ext4 */
  uint64_t bytes_looked;  /* bytes of the ranges, spread over the file, that were looked for in the page cache */
  uint64_t bytes_cached;  /* of these, those that are there */
  uint32_t cached_known;  /* 0: the kernel does not tell (the file is another user's), and both are 0 */
  uint32_t reserved;
} ckpt_file_location;

/* One piece of a read: file bytes into a buffer. */
typedef struct ckpt_read_piece {
  uint32_t file;
  uint32_t buffer;
  uint64_t file_offset;
  uint64_t buffer_offset;
  uint64_t bytes;
} ckpt_read_piece;

typedef struct ckpt_read_progress {
  uint64_t bytes_total;
  uint64_t bytes_done;
  uint32_t pieces_total;
  uint32_t pieces_prefix;  /* pieces [0, pieces_prefix) are complete */
  uint32_t state;          /* ckpt_status: NOT_READY while running, OK, or the error */
  uint32_t failed_piece;   /* index of the piece that failed, when state is an error */
} ckpt_read_progress;

/* One piece of a device-to-device copy. */
typedef struct ckpt_copy_piece {
  uint64_t dst_offset;
  uint64_t src_offset;
  uint64_t bytes;
} ckpt_copy_piece;

/* One piece of a batch of copies to device memory: rows of a buffer. All in bytes but the height. */
typedef struct ckpt_h2d_piece {
  uint32_t memory;
  uint32_t buffer;
  uint64_t memory_offset;
  uint64_t buffer_offset;
  uint64_t memory_pitch; /* from a row to the next; not looked at where there is one row or none */
  uint64_t buffer_pitch;
  uint64_t width;
  uint64_t height;
} ckpt_h2d_piece;

/* One piece of a gather: rows of a buffer into rows of another. All in bytes but the height. */
typedef struct ckpt_gather_piece {
  uint32_t src_buffer;
  uint32_t reserved;    /* 0 */
  uint64_t src_offset;
  uint64_t dst_offset;
  uint64_t src_pitch;   /* from a row to the next; not looked at where there is one row or none */
  uint64_t dst_pitch;
  uint64_t width;
  uint64_t height;
} ckpt_gather_piece;

/* One piece of a read from peers: bytes of what is attached into a buffer. */
typedef struct ckpt_p2p_piece {
  uint32_t remote;
  uint32_t reserved;    /* 0 */
  uint64_t remote_offset;
  uint64_t buffer_offset;
  uint64_t bytes;
} ckpt_p2p_piece;

/* --- library --- */
CKPT_API uint32_t ckpt_abi_version(void);
/* Size of the struct with this name ("ckpt_config"), 0 when unknown: checked at load. */
CKPT_API uint32_t ckpt_struct_bytes(const char* name);
/* "host" or "cuda". */
CKPT_API int32_t ckpt_library_kind(char* text, uint32_t text_bytes);
/* Copies the calling thread's last error, NUL terminated and cut to text_bytes. */
CKPT_API int32_t ckpt_last_error(char* text, uint32_t text_bytes);
/* setenv of the process, for settings that CUDA, NCCL and UCX read with getenv: before ckpt_init. */
CKPT_API int32_t ckpt_setenv(const char* name, const char* value);
/* Also removes the shared memory ("/dev/shm/ckpt-...") that processes which are gone left behind. */
CKPT_API int32_t ckpt_init(const ckpt_config* config);
/* Number of live objects of every kind: 0 when everything was freed. */
CKPT_API int32_t ckpt_live_objects(uint32_t* count_p);
/* Lets the calling thread, and those that it starts from now on, run on the CPUs of a NUMA node only (-1: unknown). *bound_p: 1,
 * or 0 when they run as before: the machine has one node, the process may use no CPU of this one, or the kernel refuses. */
CKPT_API int32_t ckpt_thread_bind(int32_t node, uint32_t* bound_p);

/* --- signals: an eventfd and sticky bits, so that one poll() can wait for an engine, a copy and an abort --- */
CKPT_API int32_t ckpt_signal_create(uint32_t* signal_p);
CKPT_API int32_t ckpt_signal_destroy(uint32_t signal);
CKPT_API int32_t ckpt_signal_fd(uint32_t signal, int32_t* fd_p);
/* Sets bits (may be 0: only wakes) and makes the fd readable. Never blocks. */
CKPT_API int32_t ckpt_signal_raise(uint32_t signal, uint32_t bits);
/* Drains the fd and returns the bits raised since the last reset. */
CKPT_API int32_t ckpt_signal_take(uint32_t signal, uint32_t* bits_p);
CKPT_API int32_t ckpt_signal_reset(uint32_t signal);
/* Waits until the fd is readable, then drains it. CKPT_ERR_ABORTED when the abort bit is set. */
CKPT_API int32_t ckpt_signal_wait(uint32_t signal, uint32_t timeout_ms, uint32_t* bits_p);

/* --- devices --- */
CKPT_API int32_t ckpt_device_count(uint32_t* count_p);
CKPT_API int32_t ckpt_device_describe(uint32_t device, ckpt_device_info* info_p);
CKPT_API int32_t ckpt_device_memory(uint32_t device, uint64_t* free_p, uint64_t* total_p);

/* --- device memory --- */
CKPT_API int32_t ckpt_memory_alloc(uint32_t device, uint64_t bytes, uint32_t* memory_p);
/* Frees an allocation, or closes one that ckpt_memory_open made. */
CKPT_API int32_t ckpt_memory_free(uint32_t memory);
/* The raw 64-byte IPC handle (CUDA: cudaIpcMemHandle_t; host: shared-memory name "/ckpt-...", NUL padded). */
CKPT_API int32_t ckpt_memory_export(uint32_t memory, uint8_t* handle_p);
CKPT_API int32_t ckpt_memory_open(uint32_t device, const uint8_t* handle, uint64_t bytes, uint32_t* memory_p);
/* value: 0 to 255, for every byte. */
CKPT_API int32_t ckpt_memory_fill(uint32_t memory, uint64_t offset, uint64_t bytes, uint32_t value);
/* SHA-256 (32 bytes) of a range of device memory. Blocks; for verification, not for the data path. */
CKPT_API int32_t ckpt_memory_sha256(uint32_t memory, uint64_t offset, uint64_t bytes, uint8_t* digest_p);

/* --- host memory that devices copy from --- */
/* Huge pages advised, touched by several threads, pinned (CUDA: registered for every device). */
CKPT_API int32_t ckpt_buffer_alloc(uint64_t bytes, uint32_t flags, uint32_t* buffer_p);
/* The same, not shared, of a NUMA node's memory as far as it has some free. *placed_p: 1, or 0 when the memory is what
 * ckpt_buffer_alloc gives: as for ckpt_thread_bind, or the kernel refuses mbind (a container's filter). */
CKPT_API int32_t ckpt_buffer_alloc_near(uint64_t bytes, int32_t node, uint32_t* placed_p, uint32_t* buffer_p);
/* A whole file mapped read-only in place and pinned. The file must hold a lease (ckpt_file_lease). */
CKPT_API int32_t ckpt_buffer_map(uint32_t file, uint32_t* buffer_p);
CKPT_API int32_t ckpt_buffer_free(uint32_t buffer);
/* SHA-256 (32 bytes) of a range of a buffer. Blocks. */
CKPT_API int32_t ckpt_buffer_sha256(uint32_t buffer, uint64_t offset, uint64_t bytes, uint8_t* digest_p);
CKPT_API int32_t ckpt_buffer_bytes(uint32_t buffer, uint64_t* bytes_p);
/* The shared-memory path ("/dev/shm/...") of a CKPT_BUFFER_SHARED buffer. */
CKPT_API int32_t ckpt_buffer_path(uint32_t buffer, char* text, uint32_t text_bytes);
/* Brings small pieces together, so that one copy takes them to a device: row r of a piece goes from src_offset + r * src_pitch to
 * dst_offset + r * dst_pitch. The calling thread copies, in order, so that a later piece may overwrite an earlier one. A source
 * may be a file's mapping (CKPT_ERR_CHANGED when its lease is broken), the destination may not, nor be a source. Every piece is
 * checked before the first byte is written: CKPT_ERR_INVALID for a range outside or a pitch below the width, with the piece's
 * index in the text. A range ends with the last row, not with its pitch; where width or height is 0 it is empty. */
CKPT_API int32_t ckpt_buffer_gather(uint32_t dst_buffer, const ckpt_gather_piece* pieces, uint32_t count);

/* --- files --- */
CKPT_API int32_t ckpt_file_open(const char* path, uint32_t* file_p);
CKPT_API int32_t ckpt_file_close(uint32_t file);
CKPT_API int32_t ckpt_file_describe(uint32_t file, ckpt_file_info* info_p);
/* Its file system, and how much of it is in the page cache (cachestat, else mincore). */
CKPT_API int32_t ckpt_file_locate(uint32_t file, ckpt_file_location* location_p);
/* Lets reads of the file (ckpt_read_start) go past the page cache (O_DIRECT). *direct_p: 1, or 0 when the file system or its
 * device refuses that: then they are read as before. So is what is refused later. Blocks for one block of the device. */
CKPT_API int32_t ckpt_file_direct(uint32_t file, uint32_t* direct_p);
/* Exactly `bytes` bytes at `offset`, for headers (at most 128 MiB); CKPT_ERR_IO when the file ends before. Blocks. */
CKPT_API int32_t ckpt_file_read(uint32_t file, uint64_t offset, uint64_t bytes, uint8_t* bytes_p);
/* F_RDLCK lease. A thread of the library gives a broken lease up at once; from then on copies out of the file's
 * mapping fail with CKPT_ERR_CHANGED instead of touching it, and `signal` (0: none) is raised with no bits. */
CKPT_API int32_t ckpt_file_lease(uint32_t file, uint32_t signal);
/* CKPT_ERR_CHANGED when the lease was broken, or, without a lease, when the content may have changed since ckpt_file_open:
 * size, mtime, or ctime with the same number of links. A rename, an unlink or a replacement by rename is no change. */
CKPT_API int32_t ckpt_file_check(uint32_t file);
/* SHA-256 (32 bytes) of a range of a file: compares tensors that two files hold under one name. Blocks. */
CKPT_API int32_t ckpt_file_sha256(uint32_t file, uint64_t offset, uint64_t bytes, uint8_t* digest_p);

/* --- reads: pread by several threads into buffers --- */
/* Starts reading with between threads_least and threads_most threads, as many as turn out the fastest: large reads try both numbers,
 * the first ones of the process and then now and again. Pieces are taken in order; `signal` (0: none) is raised with no bits as the prefix grows and at the end. */
CKPT_API int32_t ckpt_read_start(const ckpt_read_piece* pieces, uint32_t count, uint32_t threads_least, uint32_t threads_most, uint32_t signal, uint32_t* read_p);
CKPT_API int32_t ckpt_read_query(uint32_t read, ckpt_read_progress* progress_p);
/* The text of the failed read ("read /path at 123: Input/output error"). */
CKPT_API int32_t ckpt_read_error(uint32_t read, char* text, uint32_t text_bytes);
CKPT_API int32_t ckpt_read_wait(uint32_t read, uint32_t signal, uint32_t timeout_ms);
/* Raises `signal` with no bits once pieces [0, pieces) are complete or the read has ended: at once when they are. A signal waits
 * for one number of pieces of a read: another call replaces it. */
CKPT_API int32_t ckpt_read_notify(uint32_t read, uint32_t pieces, uint32_t signal);
/* Cancels what has not started, waits for what has, frees. */
CKPT_API int32_t ckpt_read_destroy(uint32_t read);

/* --- streams and events --- */
CKPT_API int32_t ckpt_stream_create(uint32_t device, uint32_t* stream_p);
/* Waits for the work in the stream, then frees it: abort a group whose members may not all come first. */
CKPT_API int32_t ckpt_stream_destroy(uint32_t stream);
CKPT_API int32_t ckpt_stream_wait_event(uint32_t stream, uint32_t event);
CKPT_API int32_t ckpt_stream_sync(uint32_t stream, uint32_t signal, uint32_t timeout_ms);
CKPT_API int32_t ckpt_event_create(uint32_t device, uint32_t* event_p);
CKPT_API int32_t ckpt_event_destroy(uint32_t event);
CKPT_API int32_t ckpt_event_record(uint32_t event, uint32_t stream);
/* Raises `signal` (no bits) when the last record of the event completes, also when it completes with an error. */
CKPT_API int32_t ckpt_event_notify(uint32_t event, uint32_t signal);
/* Errors of enqueued work stay with the stream: work behind it is left out, events behind it complete with the error, and so
 * do streams that wait for them, until ckpt_stream_sync has returned the error. An event that was never recorded is complete. */
/* CKPT_OK: complete; CKPT_NOT_READY; or the error of the work before it (CKPT_ERR_CHANGED, CKPT_ERR_DEVICE...). */
CKPT_API int32_t ckpt_event_query(uint32_t event);
CKPT_API int32_t ckpt_event_wait(uint32_t event, uint32_t signal, uint32_t timeout_ms);

/* --- copies --- */
/* The call refuses handles, arguments and ranges; every other error is the stream's (above). A copy out of a file's mapping
 * whose lease is broken when the copy's turn comes gives CKPT_ERR_CHANGED; the host library looks again within a copy, CUDA's
 * copies that the device has been given are read before the lease is given up, and are good. */
CKPT_API int32_t ckpt_copy_h2d(uint32_t stream, uint32_t memory, uint64_t memory_offset, uint32_t buffer, uint64_t buffer_offset, uint64_t bytes);
/* As ckpt_copy_h2d, `height` rows of `width` bytes: row r from buffer_offset + r * buffer_pitch to memory_offset + r * memory_pitch.
 * A pitch (bytes) below the width gives CKPT_ERR_INVALID. A range ends with the last row, not with its pitch; where width or
 * height is 0 it is empty, and nothing is copied. */
CKPT_API int32_t ckpt_copy_h2d_2d(uint32_t stream, uint32_t memory, uint64_t memory_offset, uint64_t memory_pitch, uint32_t buffer, uint64_t buffer_offset, uint64_t buffer_pitch, uint64_t width, uint64_t height);
/* As many calls of ckpt_copy_h2d_2d, for one wait of the device instead of one each (3 us). They are copied in any order, several
 * at once: none may overlap what another writes. The message says which piece is refused; then none is copied. */
CKPT_API int32_t ckpt_copy_h2d_batch(uint32_t stream, const ckpt_h2d_piece* pieces, uint32_t count);
/* The pieces are copied in any order, several at once: none may overlap what another writes. `src_memory` may be of
 * another device than the stream and `dst_memory`. */
CKPT_API int32_t ckpt_copy_device(uint32_t stream, uint32_t dst_memory, uint32_t src_memory, const ckpt_copy_piece* pieces, uint32_t count);

/* --- broadcast among the ranks of one process --- */
/* Like a communicator: every member calls ckpt_group_broadcast in the same order; the call enqueues on the member's
 * stream. A member's broadcast completes when its own bytes are there and, on the root, when every member has taken them. */
CKPT_API int32_t ckpt_group_create(uint32_t members, uint32_t* group_p);
CKPT_API int32_t ckpt_group_join(uint32_t group, uint32_t member, uint32_t stream, uint32_t memory);
CKPT_API int32_t ckpt_group_broadcast(uint32_t group, uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes);
/* Ends every pending broadcast with CKPT_ERR_ABORTED; the group can only be destroyed afterwards. Destroying does it too.
 * Copies that a GPU has been given already end by themselves, within their time: one that is complete there is a good one. */
CKPT_API int32_t ckpt_group_abort(uint32_t group);
CKPT_API int32_t ckpt_group_destroy(uint32_t group);

/* --- broadcast among the ranks of any processes --- */
/* CUDA: NCCL, opened at the first of these calls (CKPT_ERR_UNSUPPORTED with the reason where it is missing or too old). host: copies
 * among the ranks of one process, and UCX between processes, opened in the same way (1.12 or newer). */
/* 128 bytes that one rank makes and every other one gets: a secret. sharers: most members that will have the same device. processes:
 * how many processes the members will be in; NCCL does not care. host: with more than one, this process listens for them (on the
 * interfaces of NCCL_SOCKET_IFNAME) until all have come, its own members have given up, or ten minutes have gone. */
CKPT_API int32_t ckpt_communicator_id(uint32_t sharers, uint32_t processes, uint8_t* id_p);
/* Each member calls it once, on a thread of its own: returns when all have come. sharers: how many members have this device, which
 * must all have room on it at once. CKPT_ERR_ABORTED, CKPT_ERR_TIMEOUT. Holds device memory (NCCL: about a GiB). */
CKPT_API int32_t ckpt_communicator_create(const uint8_t* id, uint32_t device, uint32_t members, uint32_t member, uint32_t sharers, uint32_t signal, uint32_t timeout_ms, uint32_t* communicator_p);
/* Every member calls it in the same order with the same root, offset and bytes; the call enqueues on its stream: the root's bytes of
 * [offset, offset + bytes) come to the same place of each member's memory. A member's broadcast completes when its own bytes are
 * there and what the root has to send is sent. */
CKPT_API int32_t ckpt_communicator_broadcast(uint32_t communicator, uint32_t stream, uint32_t memory, uint32_t root, uint64_t offset, uint64_t bytes);
/* Ends what this member waits for, from any thread; every member's must be called. What waits for a process that is gone ends by
 * itself, with CKPT_ERR_IO (host), or not at all (CUDA: only what is called later gives CKPT_ERR_IO). Broadcasts that it ends complete
 * with nothing said and anything in the memory: whoever aborts must not look at them. CKPT_ERR_TIMEOUT when NCCL has not ended in
 * five seconds (it goes on trying). Destroying does the same. */
CKPT_API int32_t ckpt_communicator_abort(uint32_t communicator);
CKPT_API int32_t ckpt_communicator_destroy(uint32_t communicator);

/* --- reads of another process's host memory --- */
/* By UCX, opened at the first call (CKPT_ERR_UNSUPPORTED with the reason where it is missing or older than 1.12): an owner shares
 * buffers, a receiver copies out of them into device memory or reads them into a buffer of its own. Addresses and keys are bytes
 * that the two hand to each other by other means; they are as secret as the memory. A thread of the library answers peers whose
 * network cannot read by itself. */
/* devices: which network devices are used, as in UCX_NET_DEVICES ("mlx5_0:1,eth0"); "": as the process is set. */
CKPT_API int32_t ckpt_p2p_open(const char* devices, uint32_t* p2p_p);
/* Ends every read of this side with CKPT_ERR_ABORTED and those of peers with CKPT_ERR_IO, from any thread, and ends what is shared.
 * CKPT_ERR_TIMEOUT when UCX has not ended in five seconds (it goes on trying). */
CKPT_API int32_t ckpt_p2p_close(uint32_t p2p);
/* What a peer connects to. CKPT_ERR_INVALID when it is more than `capacity` bytes (64 KiB is enough for any), with the length. */
CKPT_API int32_t ckpt_p2p_address(uint32_t p2p, uint8_t* bytes_p, uint32_t capacity, uint32_t* length_p);
/* Registers a whole buffer and gives the key to it, as ckpt_p2p_address does. The memory lives on until ckpt_p2p_unshare, or where the
 * buffer's handle is freed before that until ckpt_p2p_close. Once for each buffer (CKPT_ERR_STATE). What maps a file is not registered:
 * a thread here reads the file for its peers, whatever the transport, and where its lease is broken their reads end with
 * CKPT_ERR_CHANGED and the file's name. Blocks. */
CKPT_API int32_t ckpt_p2p_share(uint32_t p2p, uint32_t buffer, uint8_t* key_p, uint32_t capacity, uint32_t* length_p);
/* Peers must not read it any more: a read gives an error or old bytes. */
CKPT_API int32_t ckpt_p2p_unshare(uint32_t p2p, uint32_t buffer);
/* Returns at once: whether the peer is there shows when something is read. CKPT_ERR_INVALID for bytes that are no address,
 * CKPT_ERR_UNSUPPORTED when no network in common leads to it. */
CKPT_API int32_t ckpt_p2p_connect(uint32_t p2p, const uint8_t* address, uint32_t length, uint32_t* peer_p);
/* Ends every read from the peer with CKPT_ERR_ABORTED, from any thread; what was attached can only be detached afterwards. */
CKPT_API int32_t ckpt_p2p_disconnect(uint32_t peer);
CKPT_API int32_t ckpt_p2p_attach(uint32_t peer, const uint8_t* key, uint32_t length, uint32_t* remote_p);
/* Copies that are enqueued still run. */
CKPT_API int32_t ckpt_p2p_detach(uint32_t remote);
/* How the peer's memory is read: "rdma" and "cma" without the peer's doing, by messages to its thread "shm" (on one machine) and
 * "emulated" (TCP). */
CKPT_API int32_t ckpt_p2p_transport(uint32_t peer, char* text, uint32_t text_bytes);
/* As ckpt_copy_h2d, out of what is attached: a range outside of what the peer shares gives CKPT_ERR_INVALID. A peer that is lost
 * gives CKPT_ERR_IO, within some seconds where its machine is gone without a word. */
CKPT_API int32_t ckpt_copy_remote(uint32_t stream, uint32_t memory, uint64_t memory_offset, uint32_t remote, uint64_t remote_offset, uint64_t bytes);
/* Starts reading pieces of what is attached, of one peer or several, into a buffer (none that maps a file) and returns at once. The
 * pieces come in any order, several at once: none may overlap what another writes, and 0 bytes are none. The call refuses handles
 * and ranges (CKPT_ERR_INVALID); every other error is the read's. `signal` (0: none) is raised with no bits when it has ended, with
 * an error or without. What is detached or freed meanwhile lives on until ckpt_p2p_read_destroy. */
CKPT_API int32_t ckpt_p2p_read_start(const ckpt_p2p_piece* pieces, uint32_t count, uint32_t buffer, uint32_t signal, uint32_t* read_p);
/* CKPT_OK: every byte is there; CKPT_NOT_READY; or what ended it, as of ckpt_copy_remote, ckpt_p2p_disconnect and ckpt_p2p_close. Once
 * it is not CKPT_NOT_READY nothing of the read writes to the buffer any more. */
CKPT_API int32_t ckpt_p2p_read_query(uint32_t read);
/* Leaves out what is not under way yet, waits for what is (ckpt_p2p_disconnect and ckpt_p2p_close end it), frees. */
CKPT_API int32_t ckpt_p2p_read_destroy(uint32_t read);

/* --- engine protocol --- */
/* The POSIX shared-memory ref-counter file that torch's rebuild_cuda_tensor wants: a 64-byte header whose first int64 is 1,
 * then 10,000 int64 of value 1. The name is "/ckpt-..." and is returned NUL terminated. */
CKPT_API int32_t ckpt_refcounter_create(uint32_t* refcounter_p, char* name_p, uint32_t name_bytes);
CKPT_API int32_t ckpt_refcounter_destroy(uint32_t refcounter);

#ifdef __cplusplus
}
#endif
#endif
