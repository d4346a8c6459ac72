// Made from native/include/ckpt.h by scripts/generate-ffi.ts. Do not edit.

export const ABI_VERSION = 6
export const HANDLE_BYTES = 64
export const COMMUNICATOR_ID_BYTES = 128

// ckpt_status
export const STATUS_OK = 0
export const STATUS_NOT_READY = 1
export const STATUS_ERR_INVALID = 2
export const STATUS_ERR_HANDLE = 3
export const STATUS_ERR_MEMORY = 4
export const STATUS_ERR_TIMEOUT = 5
export const STATUS_ERR_ABORTED = 6
export const STATUS_ERR_IO = 7
export const STATUS_ERR_CHANGED = 8
export const STATUS_ERR_LEASE = 9
export const STATUS_ERR_DEVICE = 10
export const STATUS_ERR_DEVICE_LOST = 11
export const STATUS_ERR_UNSUPPORTED = 12
export const STATUS_ERR_STATE = 13

// ckpt_signal_bit
export const SIGNAL_ABORT = 1
export const SIGNAL_HTTP = 2
export const SIGNAL_USER = 4

// ckpt_buffer_flag
export const BUFFER_SHARED = 1

// ckpt_file_kind
export const FILE_DISK = 0
export const FILE_TMPFS = 1

/** Sizes, and offsets of the fields in bytes. */
export const STRUCTS = {
  config: {
    name: 'ckpt_config',
    bytes: 32,
    fields: {
      hostDevices: { type: 'uint32_t', offset: 0 },
      reserved: { type: 'uint32_t', offset: 4 },
      hostDeviceBytes: { type: 'uint64_t', offset: 8 },
      hostCopyBytesPerSecond: { type: 'uint64_t', offset: 16 },
      readBytesPerSecond: { type: 'uint64_t', offset: 24 },
    },
  },
  deviceInfo: {
    name: 'ckpt_device_info',
    bytes: 160,
    fields: {
      name: { type: 'char', offset: 0, count: 64 },
      uuid: { type: 'char', offset: 64, count: 48 },
      pci: { type: 'char', offset: 112, count: 32 },
      totalBytes: { type: 'uint64_t', offset: 144 },
      numaNode: { type: 'int32_t', offset: 152 },
      reserved: { type: 'uint32_t', offset: 156 },
    },
  },
  fileInfo: {
    name: 'ckpt_file_info',
    bytes: 40,
    fields: {
      bytes: { type: 'uint64_t', offset: 0 },
      inode: { type: 'uint64_t', offset: 8 },
      device: { type: 'uint64_t', offset: 16 },
      ctimeNs: { type: 'int64_t', offset: 24 },
      kind: { type: 'uint32_t', offset: 32 },
      leased: { type: 'uint32_t', offset: 36 },
    },
  },
  fileLocation: {
    name: 'ckpt_file_location',
    bytes: 32,
    fields: {
      filesystem: { type: 'uint64_t', offset: 0 },
      bytesLooked: { type: 'uint64_t', offset: 8 },
      bytesCached: { type: 'uint64_t', offset: 16 },
      cachedKnown: { type: 'uint32_t', offset: 24 },
      reserved: { type: 'uint32_t', offset: 28 },
    },
  },
  readPiece: {
    name: 'ckpt_read_piece',
    bytes: 32,
    fields: {
      file: { type: 'uint32_t', offset: 0 },
      buffer: { type: 'uint32_t', offset: 4 },
      fileOffset: { type: 'uint64_t', offset: 8 },
      bufferOffset: { type: 'uint64_t', offset: 16 },
      bytes: { type: 'uint64_t', offset: 24 },
    },
  },
  readProgress: {
    name: 'ckpt_read_progress',
    bytes: 32,
    fields: {
      bytesTotal: { type: 'uint64_t', offset: 0 },
      bytesDone: { type: 'uint64_t', offset: 8 },
      piecesTotal: { type: 'uint32_t', offset: 16 },
      piecesPrefix: { type: 'uint32_t', offset: 20 },
      state: { type: 'uint32_t', offset: 24 },
      failedPiece: { type: 'uint32_t', offset: 28 },
    },
  },
  copyPiece: {
    name: 'ckpt_copy_piece',
    bytes: 24,
    fields: {
      dstOffset: { type: 'uint64_t', offset: 0 },
      srcOffset: { type: 'uint64_t', offset: 8 },
      bytes: { type: 'uint64_t', offset: 16 },
    },
  },
  h2dPiece: {
    name: 'ckpt_h2d_piece',
    bytes: 56,
    fields: {
      memory: { type: 'uint32_t', offset: 0 },
      buffer: { type: 'uint32_t', offset: 4 },
      memoryOffset: { type: 'uint64_t', offset: 8 },
      bufferOffset: { type: 'uint64_t', offset: 16 },
      memoryPitch: { type: 'uint64_t', offset: 24 },
      bufferPitch: { type: 'uint64_t', offset: 32 },
      width: { type: 'uint64_t', offset: 40 },
      height: { type: 'uint64_t', offset: 48 },
    },
  },
  gatherPiece: {
    name: 'ckpt_gather_piece',
    bytes: 56,
    fields: {
      srcBuffer: { type: 'uint32_t', offset: 0 },
      reserved: { type: 'uint32_t', offset: 4 },
      srcOffset: { type: 'uint64_t', offset: 8 },
      dstOffset: { type: 'uint64_t', offset: 16 },
      srcPitch: { type: 'uint64_t', offset: 24 },
      dstPitch: { type: 'uint64_t', offset: 32 },
      width: { type: 'uint64_t', offset: 40 },
      height: { type: 'uint64_t', offset: 48 },
    },
  },
  p2pPiece: {
    name: 'ckpt_p2p_piece',
    bytes: 32,
    fields: {
      remote: { type: 'uint32_t', offset: 0 },
      reserved: { type: 'uint32_t', offset: 4 },
      remoteOffset: { type: 'uint64_t', offset: 8 },
      bufferOffset: { type: 'uint64_t', offset: 16 },
      bytes: { type: 'uint64_t', offset: 24 },
    },
  },
} as const

/** Symbol table for `dlopen`. */
export const SYMBOLS = {
  ckpt_abi_version: { args: [], returns: 'u32' },
  ckpt_struct_bytes: { args: ['buffer'], returns: 'u32' },
  ckpt_library_kind: { args: ['buffer', 'u32'], returns: 'i32' },
  ckpt_last_error: { args: ['buffer', 'u32'], returns: 'i32' },
  ckpt_setenv: { args: ['buffer', 'buffer'], returns: 'i32' },
  ckpt_init: { args: ['buffer'], returns: 'i32' },
  ckpt_live_objects: { args: ['buffer'], returns: 'i32' },
  ckpt_thread_bind: { args: ['i32', 'buffer'], returns: 'i32' },
  ckpt_signal_create: { args: ['buffer'], returns: 'i32' },
  ckpt_signal_destroy: { args: ['u32'], returns: 'i32' },
  ckpt_signal_fd: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_signal_raise: { args: ['u32', 'u32'], returns: 'i32' },
  ckpt_signal_take: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_signal_reset: { args: ['u32'], returns: 'i32' },
  ckpt_signal_wait: { args: ['u32', 'u32', 'buffer'], returns: 'i32' },
  ckpt_device_count: { args: ['buffer'], returns: 'i32' },
  ckpt_device_describe: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_device_memory: { args: ['u32', 'buffer', 'buffer'], returns: 'i32' },
  ckpt_memory_alloc: { args: ['u32', 'u64', 'buffer'], returns: 'i32' },
  ckpt_memory_free: { args: ['u32'], returns: 'i32' },
  ckpt_memory_export: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_memory_open: { args: ['u32', 'buffer', 'u64', 'buffer'], returns: 'i32' },
  ckpt_memory_fill: { args: ['u32', 'u64', 'u64', 'u32'], returns: 'i32' },
  ckpt_memory_sha256: { args: ['u32', 'u64', 'u64', 'buffer'], returns: 'i32' },
  ckpt_buffer_alloc: { args: ['u64', 'u32', 'buffer'], returns: 'i32' },
  ckpt_buffer_alloc_near: { args: ['u64', 'i32', 'buffer', 'buffer'], returns: 'i32' },
  ckpt_buffer_map: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_buffer_free: { args: ['u32'], returns: 'i32' },
  ckpt_buffer_sha256: { args: ['u32', 'u64', 'u64', 'buffer'], returns: 'i32' },
  ckpt_buffer_bytes: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_buffer_path: { args: ['u32', 'buffer', 'u32'], returns: 'i32' },
  ckpt_buffer_gather: { args: ['u32', 'buffer', 'u32'], returns: 'i32' },
  ckpt_file_open: { args: ['buffer', 'buffer'], returns: 'i32' },
  ckpt_file_close: { args: ['u32'], returns: 'i32' },
  ckpt_file_describe: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_file_locate: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_file_direct: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_file_read: { args: ['u32', 'u64', 'u64', 'buffer'], returns: 'i32' },
  ckpt_file_lease: { args: ['u32', 'u32'], returns: 'i32' },
  ckpt_file_check: { args: ['u32'], returns: 'i32' },
  ckpt_file_sha256: { args: ['u32', 'u64', 'u64', 'buffer'], returns: 'i32' },
  ckpt_read_start: { args: ['buffer', 'u32', 'u32', 'u32', 'u32', 'buffer'], returns: 'i32' },
  ckpt_read_query: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_read_error: { args: ['u32', 'buffer', 'u32'], returns: 'i32' },
  ckpt_read_wait: { args: ['u32', 'u32', 'u32'], returns: 'i32' },
  ckpt_read_notify: { args: ['u32', 'u32', 'u32'], returns: 'i32' },
  ckpt_read_destroy: { args: ['u32'], returns: 'i32' },
  ckpt_stream_create: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_stream_destroy: { args: ['u32'], returns: 'i32' },
  ckpt_stream_wait_event: { args: ['u32', 'u32'], returns: 'i32' },
  ckpt_stream_sync: { args: ['u32', 'u32', 'u32'], returns: 'i32' },
  ckpt_event_create: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_event_destroy: { args: ['u32'], returns: 'i32' },
  ckpt_event_record: { args: ['u32', 'u32'], returns: 'i32' },
  ckpt_event_notify: { args: ['u32', 'u32'], returns: 'i32' },
  ckpt_event_query: { args: ['u32'], returns: 'i32' },
  ckpt_event_wait: { args: ['u32', 'u32', 'u32'], returns: 'i32' },
  ckpt_copy_h2d: { args: ['u32', 'u32', 'u64', 'u32', 'u64', 'u64'], returns: 'i32' },
  ckpt_copy_h2d_2d: {
    args: ['u32', 'u32', 'u64', 'u64', 'u32', 'u64', 'u64', 'u64', 'u64'],
    returns: 'i32',
  },
  ckpt_copy_h2d_batch: { args: ['u32', 'buffer', 'u32'], returns: 'i32' },
  ckpt_copy_device: { args: ['u32', 'u32', 'u32', 'buffer', 'u32'], returns: 'i32' },
  ckpt_group_create: { args: ['u32', 'buffer'], returns: 'i32' },
  ckpt_group_join: { args: ['u32', 'u32', 'u32', 'u32'], returns: 'i32' },
  ckpt_group_broadcast: { args: ['u32', 'u32', 'u32', 'u64', 'u64'], returns: 'i32' },
  ckpt_group_abort: { args: ['u32'], returns: 'i32' },
  ckpt_group_destroy: { args: ['u32'], returns: 'i32' },
  ckpt_communicator_id: { args: ['u32', 'u32', 'buffer'], returns: 'i32' },
  ckpt_communicator_create: {
    args: ['buffer', 'u32', 'u32', 'u32', 'u32', 'u32', 'u32', 'buffer'],
    returns: 'i32',
  },
  ckpt_communicator_broadcast: { args: ['u32', 'u32', 'u32', 'u32', 'u64', 'u64'], returns: 'i32' },
  ckpt_communicator_abort: { args: ['u32'], returns: 'i32' },
  ckpt_communicator_destroy: { args: ['u32'], returns: 'i32' },
  ckpt_p2p_open: { args: ['buffer', 'buffer'], returns: 'i32' },
  ckpt_p2p_close: { args: ['u32'], returns: 'i32' },
  ckpt_p2p_address: { args: ['u32', 'buffer', 'u32', 'buffer'], returns: 'i32' },
  ckpt_p2p_share: { args: ['u32', 'u32', 'buffer', 'u32', 'buffer'], returns: 'i32' },
  ckpt_p2p_unshare: { args: ['u32', 'u32'], returns: 'i32' },
  ckpt_p2p_connect: { args: ['u32', 'buffer', 'u32', 'buffer'], returns: 'i32' },
  ckpt_p2p_disconnect: { args: ['u32'], returns: 'i32' },
  ckpt_p2p_attach: { args: ['u32', 'buffer', 'u32', 'buffer'], returns: 'i32' },
  ckpt_p2p_detach: { args: ['u32'], returns: 'i32' },
  ckpt_p2p_transport: { args: ['u32', 'buffer', 'u32'], returns: 'i32' },
  ckpt_copy_remote: { args: ['u32', 'u32', 'u64', 'u32', 'u64', 'u64'], returns: 'i32' },
  ckpt_p2p_read_start: { args: ['buffer', 'u32', 'u32', 'u32', 'buffer'], returns: 'i32' },
  ckpt_p2p_read_query: { args: ['u32'], returns: 'i32' },
  ckpt_p2p_read_destroy: { args: ['u32'], returns: 'i32' },
  ckpt_refcounter_create: { args: ['buffer', 'buffer', 'u32'], returns: 'i32' },
  ckpt_refcounter_destroy: { args: ['u32'], returns: 'i32' },
} as const
