// Streams and events, and the thread that raises the signals of completed events.
#pragma once

#include <mutex>

#include "cuda-api.h"
#include "handle-table.h"
#include "signal.h"

namespace ckpt {

class Group;

class Stream : public Object {
 public:
  static constexpr Kind kKind = Kind::stream;

  explicit Stream(uint32_t device);
  ~Stream() override;
  void close() override;  // waits for the work in it

  uint32_t device() const noexcept { return device_; }
  cudaStream_t raw() const noexcept { return stream_; }

  // The group of the last broadcast in this stream: what is recorded behind it fails when the group is aborted.
  void follow(std::shared_ptr<Group> group);
  std::shared_ptr<Group> followed();

 private:
  uint32_t device_;
  cudaStream_t stream_ = nullptr;
  std::mutex mutex_;
  std::shared_ptr<Group> group_;
};

class Event : public Object {
 public:
  static constexpr Kind kKind = Kind::event;

  explicit Event(uint32_t device);
  ~Event() override;

  void record(Stream& stream);
  void make_wait(Stream& stream);
  // CKPT_OK or CKPT_NOT_READY; throws the error of the work before it. An event that was never recorded is complete.
  ckpt_status query();

 private:
  uint32_t device_;
  cudaEvent_t event_ = nullptr;
  std::mutex mutex_;
  std::shared_ptr<Group> group_;
};

}  // namespace ckpt
