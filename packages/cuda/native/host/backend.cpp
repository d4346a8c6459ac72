// The host library's side of common/backend.h.
#include "common/backend.h"

#include "common/error.h"
#include "communicator.h"
#include "devices.h"
#include "group.h"
#include "memory.h"
#include "stream.h"

namespace ckpt::backend {

const char* kind() noexcept { return "host"; }

void init(const ckpt_config& config) { devices_init(config); }

uint32_t device_count() { return devices_count(); }

void device_describe(uint32_t device, ckpt_device_info& info) {
  copy_text(format_text("ckpt host device %u", device).c_str(), info.name, sizeof info.name);
  copy_text(device_uuid(device).c_str(), info.uuid, sizeof info.uuid);
  info.total_bytes = device_total_bytes();
  info.numa_node = -1;
}

void device_memory(uint32_t device, uint64_t& free_bytes, uint64_t& total_bytes) {
  free_bytes = device_free_bytes(device);
  total_bytes = device_total_bytes();
}

std::shared_ptr<Memory> memory_alloc(uint32_t device, uint64_t bytes) {
  return HostMemory::allocate(device, bytes);
}

std::shared_ptr<Memory> memory_open(uint32_t device, const uint8_t* handle, uint64_t bytes) {
  return HostMemory::open(device, handle, bytes);
}

std::shared_ptr<Stream> stream_create(uint32_t device) {
  return std::make_shared<HostStream>(device);
}

std::shared_ptr<Event> event_create(uint32_t device) { return std::make_shared<HostEvent>(device); }

std::shared_ptr<Group> group_create(uint32_t members) {
  return std::make_shared<HostGroup>(members);
}

void communicator_id(uint32_t, uint32_t processes, uint8_t* id) {
  make_communicator_id(processes, id);
}

std::shared_ptr<Communicator> communicator_create(const CommunicatorPlace& place,
                                                  std::shared_ptr<Signal> signal,
                                                  uint32_t timeout_ms) {
  return meet_communicator(place, signal.get(), timeout_ms);
}

// Nothing reads host memory but the processor.
PinPlan pin_plan(uint64_t, bool) { return {false, 0}; }
void pin_host(void*, uint64_t, bool) {}
void unpin_host(void*) noexcept {}

}  // namespace ckpt::backend
