// What a backend (host/, cuda/) implements. common/ implements the whole C ABI of ckpt.h on top of
// it:
//
//   common/api-library.cpp   library, signals, init, live objects
//   common/api-host.cpp      buffers, files, reads, the reference counters
//   common/api-device.cpp    devices, memory, streams, events, copies: looks handles up, checks
//                            arguments and ranges, then calls the functions and classes below
//   common/api-group.cpp     groups and communicators, in the same way
//   common/api-p2p.cpp       reads from peers (p2p.h, p2p-read.h)
//
// So a backend has no extern "C" function. It derives from Memory, Stream, Event, Group and
// Communicator, and
// defines the functions of namespace backend. It reports an error by throwing ckpt::Error (fail()
// and fail_errno() in error.h); destructors do not throw. Every function may be called from any
// thread, also several at once on one object.
//
// Ready for use in a backend: Completion and wait_for (completion.h: waits that a signal aborts),
// start_thread and parallel_for (threads.h), SharedMemory (host-memory.h), Sha256, and Buffer/File
// (buffer.h, file.h).
//
// Sources include "ckpt.h" and "common/...h" (native/include, native and native/common are on the
// path); C++20, -Wall -Wextra -Werror.
//
// Copies out of a Buffer whose file() is not null: take file()->enter() and keep the Reader until
// the device has read the bytes; null means CKPT_ERR_CHANGED. Cut copies at multiples of
// pin_piece_bytes().
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "handle-table.h"

namespace ckpt {

class Buffer;
class P2pRemote;
class Signal;

// Device memory. The destructor frees it (or closes it when it was opened): by then the handle is
// destroyed and no call and no queued work refers to it.
class Memory : public Object {
 public:
  static constexpr Kind kKind = Kind::memory;
  Memory(uint32_t device, uint64_t bytes) : device_(device), bytes_(bytes) {}
  uint32_t device() const noexcept { return device_; }
  uint64_t bytes() const noexcept { return bytes_; }

  // CKPT_HANDLE_BYTES bytes; CKPT_ERR_STATE for memory that was itself opened.
  virtual void export_handle(uint8_t* handle) = 0;
  // Ranges are checked; value is 0 to 255. All three return when it is done.
  virtual void fill(uint64_t offset, uint64_t bytes, uint32_t value) = 0;
  virtual void sha256(uint64_t offset, uint64_t bytes, uint8_t* digest) = 0;

 private:
  uint32_t device_;
  uint64_t bytes_;
};

// What a copy to device memory takes: rows, each a pitch behind the one before it. A copy in one
// piece is one row. All in bytes but the height.
struct CopyRows {
  uint64_t to_offset;
  uint64_t to_pitch;
  uint64_t from_offset;
  uint64_t from_pitch;
  uint64_t width;
  uint64_t height;
};

// One of many copies to device memory that are enqueued together.
struct BatchCopy {
  std::shared_ptr<Memory> to;
  std::shared_ptr<Buffer> from;
  CopyRows rows;
};

class Event;

// Work in order. An error of work that was enqueued stays with the stream: work behind it is left
// out, events recorded behind it complete with it, a stream that waits for such an event takes it
// over. sync() returns it and clears it. close() waits for the work; afterwards enqueuing gives
// CKPT_ERR_STATE.
class Stream : public Object {
 public:
  static constexpr Kind kKind = Kind::stream;
  explicit Stream(uint32_t device) : device_(device) {}
  uint32_t device() const noexcept { return device_; }

  // The state of the event's last record at the time of the call; nothing when it was never
  // recorded.
  virtual void wait_event(Event& event) = 0;
  // signal may be null. Throws the stream's error, CKPT_ERR_ABORTED or CKPT_ERR_TIMEOUT.
  virtual void sync(Signal* signal, uint32_t timeout_ms) = 0;
  // Ranges are checked, no pitch is less than the width, width > 0, height > 0.
  virtual void copy_h2d(std::shared_ptr<Memory> to, std::shared_ptr<Buffer> from,
                        const CopyRows& rows) = 0;
  // As for copy_h2d; what they write does not overlap.
  virtual void copy_h2d_batch(std::vector<BatchCopy> copies) {
    for (BatchCopy& copy : copies) copy_h2d(std::move(copy.to), std::move(copy.from), copy.rows);
  }
  // Ranges are checked, bytes > 0.
  virtual void copy_remote(std::shared_ptr<Memory> to, uint64_t to_offset,
                           std::shared_ptr<P2pRemote> from, uint64_t from_offset,
                           uint64_t bytes) = 0;
  virtual void copy_device(std::shared_ptr<Memory> to, std::shared_ptr<Memory> from,
                           std::vector<ckpt_copy_piece> pieces) = 0;

 private:
  uint32_t device_;
};

class Event : public Object {
 public:
  static constexpr Kind kKind = Kind::event;
  explicit Event(uint32_t device) : device_(device) {}
  uint32_t device() const noexcept { return device_; }

  virtual void record(Stream& stream) = 0;
  // Raises the signal (no bits) when the last record completes, with an error or without; at once
  // when it has, or when there is none.
  virtual void notify(std::shared_ptr<Signal> signal) = 0;
  // False: not complete. Throws the error of the work before it. An event that was never recorded
  // is complete.
  virtual bool query() = 0;
  // signal may be null. Throws the work's error, CKPT_ERR_ABORTED or CKPT_ERR_TIMEOUT.
  virtual void wait(Signal* signal, uint32_t timeout_ms) = 0;

 private:
  uint32_t device_;
};

// See ckpt_group_broadcast. close() does what abort() does.
class Group : public Object {
 public:
  static constexpr Kind kKind = Kind::group;
  explicit Group(uint32_t members) : members_(members) {}
  uint32_t members() const noexcept { return members_; }

  // member < members(). A member joins once; a stream joins one member of a group (CKPT_ERR_STATE,
  // CKPT_ERR_INVALID). The group must not keep stream and memory alive (weak_ptr): they can be
  // freed before it.
  virtual void join(uint32_t member, std::shared_ptr<Stream> stream,
                    std::shared_ptr<Memory> memory) = 0;
  // member, root < members(), bytes > 0. CKPT_ERR_STATE unless the member has joined,
  // CKPT_ERR_INVALID when the range is outside of its memory, or when root, offset or bytes differ
  // from what another member said for the same broadcast, CKPT_ERR_ABORTED after abort().
  virtual void broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) = 0;
  virtual void abort() = 0;
  void close() override { abort(); }

 private:
  uint32_t members_;
};

// One member's part in broadcasts among ranks of any processes, see ckpt_communicator_broadcast.
// close() does what abort() does.
class Communicator : public Object {
 public:
  static constexpr Kind kKind = Kind::communicator;
  Communicator(uint32_t device, uint32_t members) : device_(device), members_(members) {}
  uint32_t device() const noexcept { return device_; }
  uint32_t members() const noexcept { return members_; }

  // root < members(), bytes > 0, a range of the memory; stream and memory are of device().
  // CKPT_ERR_ABORTED after abort().
  virtual void broadcast(std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory,
                         uint32_t root, uint64_t offset, uint64_t bytes) = 0;
  virtual void abort() = 0;
  void close() override { abort(); }

 private:
  uint32_t device_;
  uint32_t members_;
};

// member < members; `sharers` members have this device, at least this one.
struct CommunicatorPlace {
  const uint8_t* id;  // CKPT_COMMUNICATOR_ID_BYTES
  uint32_t device;
  uint32_t members;
  uint32_t member;
  uint32_t sharers;
};

// How a range of host memory is pinned: in pieces, several at once.
struct PinPlan {
  bool needed;           // false: nothing is pinned
  uint64_t piece_bytes;  // a multiple of 2 MiB; 0: the whole range in one piece
};

namespace backend {

// "host" or "cuda".
const char* kind() noexcept;

// Called once, before everything below, by the first ckpt_init that succeeds. The functions below
// are called only after it; device < device_count().
void init(const ckpt_config& config);
uint32_t device_count();
void device_describe(uint32_t device, ckpt_device_info& info);  // info is all zeros
void device_memory(uint32_t device, uint64_t& free_bytes, uint64_t& total_bytes);

std::shared_ptr<Memory> memory_alloc(uint32_t device, uint64_t bytes);
std::shared_ptr<Memory> memory_open(uint32_t device, const uint8_t* handle, uint64_t bytes);
std::shared_ptr<Stream> stream_create(uint32_t device);
std::shared_ptr<Event> event_create(uint32_t device);
std::shared_ptr<Group> group_create(uint32_t members);
// CKPT_COMMUNICATOR_ID_BYTES. CKPT_ERR_UNSUPPORTED also where as many members as `sharers` cannot
// have one device. The members are of `processes` processes, one or more.
void communicator_id(uint32_t sharers, uint32_t processes, uint8_t* id);
// Returns when every member has come. signal may be null. Throws CKPT_ERR_ABORTED or
// CKPT_ERR_TIMEOUT.
std::shared_ptr<Communicator> communicator_create(const CommunicatorPlace& place,
                                                  std::shared_ptr<Signal> signal,
                                                  uint32_t timeout_ms);

// Host memory for every device. The pages are populated. unpin_host gets the addresses that
// pin_host got.
PinPlan pin_plan(uint64_t bytes, bool read_only);
void pin_host(void* address, uint64_t bytes, bool read_only);
void unpin_host(void* address) noexcept;

}  // namespace backend
}  // namespace ckpt
