#include "init.h"

#include <atomic>
#include <mutex>

#include "backend.h"
#include "error.h"
#include "host-memory.h"

namespace ckpt {
namespace {

std::mutex mutex;
std::atomic<bool> initialized{false};
ckpt_config first_config;

bool same(const ckpt_config& a, const ckpt_config& b) {
  return a.host_devices == b.host_devices && a.host_device_bytes == b.host_device_bytes &&
         a.host_copy_bytes_per_second == b.host_copy_bytes_per_second &&
         a.read_bytes_per_second == b.read_bytes_per_second;
}

}  // namespace

void initialize(const ckpt_config& config) {
  std::lock_guard lock(mutex);
  if (initialized) {
    if (!same(config, first_config))
      fail(CKPT_ERR_STATE, "ckpt_init was called before with another configuration");
    return;
  }
  remove_dead_shared_memory();
  backend::init(config);
  first_config = config;
  initialized = true;
}

void require_initialized() {
  if (!initialized) fail(CKPT_ERR_STATE, "ckpt_init has not been called");
}

void require_device(uint32_t device) {
  require_initialized();
  const uint32_t count = backend::device_count();
  if (device >= count) fail(CKPT_ERR_INVALID, "device %u: there are %u", device, count);
}

uint64_t read_bytes_per_second() {
  require_initialized();
  return first_config.read_bytes_per_second;
}

}  // namespace ckpt
