#include "stream.h"

#include <chrono>
#include <thread>

#include "group.h"
#include "notifier.h"
#include "wake.h"

namespace ckpt {

Stream::Stream(uint32_t device) : device_(device) {
  use_device(device);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

Stream::~Stream() {
  if (stream_ != nullptr && cudaSetDevice(static_cast<int>(device_)) == cudaSuccess) cudaStreamDestroy(stream_);
}

void Stream::close() {
  use_device(device_);
  check_cuda(cudaStreamSynchronize(stream_), "the work in the stream");
}

void Stream::follow(std::shared_ptr<Group> group) {
  std::lock_guard lock(mutex_);
  group_ = std::move(group);
}

std::shared_ptr<Group> Stream::followed() {
  std::lock_guard lock(mutex_);
  return group_;
}

Event::Event(uint32_t device) : device_(device) {
  use_device(device);
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}

Event::~Event() {
  if (event_ != nullptr && cudaSetDevice(static_cast<int>(device_)) == cudaSuccess) cudaEventDestroy(event_);
}

void Event::record(Stream& stream) {
  use_device(device_);
  std::lock_guard lock(mutex_);
  check_cuda(cudaEventRecord(event_, stream.raw()), "cudaEventRecord");
  group_ = stream.followed();
}

void Event::make_wait(Stream& stream) {
  use_device(stream.device());
  std::lock_guard lock(mutex_);
  check_cuda(cudaStreamWaitEvent(stream.raw(), event_, 0), "cudaStreamWaitEvent");
  if (group_) stream.follow(group_);
}

ckpt_status Event::query() {
  use_device(device_);
  std::lock_guard lock(mutex_);
  if (group_ && group_->aborted()) fail(CKPT_ERR_ABORTED, "a broadcast before the event was aborted");
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) return CKPT_NOT_READY;
  check_cuda(error, "the work before the event");
  return CKPT_OK;
}

namespace {

constexpr auto kPollInterval = std::chrono::microseconds(50);

// CUDA has no wait with a deadline, so it is polled; the data path uses ckpt_event_notify and poll() instead.
void wait_event(Event& event, Signal* signal, uint32_t timeout_ms, const char* what) {
  const auto deadline = deadline_after(timeout_ms);
  for (;;) {
    if (event.query() == CKPT_OK) return;
    if (signal != nullptr && signal->aborted()) fail(CKPT_ERR_ABORTED, "%s: aborted", what);
    if (Clock::now() >= deadline) fail(CKPT_ERR_TIMEOUT, "%s: not done within %u ms", what, timeout_ms);
    std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace
}  // namespace ckpt

using namespace ckpt;

int32_t ckpt_stream_create(uint32_t device, uint32_t* stream_p) {
  return guard([&] {
    require(stream_p, "stream_p");
    *stream_p = add_object(std::make_shared<Stream>(device));
  });
}

int32_t ckpt_stream_destroy(uint32_t stream) {
  return guard([&] { destroy_object<Stream>(stream); });
}

int32_t ckpt_stream_wait_event(uint32_t stream, uint32_t event) {
  return guard([&] { find_object<Event>(event)->make_wait(*find_object<Stream>(stream)); });
}

int32_t ckpt_stream_sync(uint32_t stream, uint32_t signal, uint32_t timeout_ms) {
  return guard([&] {
    const auto object = find_object<Stream>(stream);
    const auto abort = find_optional<Signal>(signal);
    Event event(object->device());
    event.record(*object);
    wait_event(event, abort.get(), timeout_ms, "the stream");
  });
}

int32_t ckpt_event_create(uint32_t device, uint32_t* event_p) {
  return guard([&] {
    require(event_p, "event_p");
    *event_p = add_object(std::make_shared<Event>(device));
  });
}

int32_t ckpt_event_destroy(uint32_t event) {
  return guard([&] { destroy_object<Event>(event); });
}

int32_t ckpt_event_record(uint32_t event, uint32_t stream) {
  return guard([&] { find_object<Event>(event)->record(*find_object<Stream>(stream)); });
}

int32_t ckpt_event_notify(uint32_t event, uint32_t signal) {
  return guard([&] { notify_when_complete(find_object<Event>(event), find_object<Signal>(signal)); });
}

int32_t ckpt_event_query(uint32_t event) {
  return guard([&] { return static_cast<int32_t>(find_object<Event>(event)->query()); });
}

int32_t ckpt_event_wait(uint32_t event, uint32_t signal, uint32_t timeout_ms) {
  return guard([&] {
    const auto object = find_object<Event>(event);
    const auto abort = find_optional<Signal>(signal);
    wait_event(*object, abort.get(), timeout_ms, "the event");
  });
}
