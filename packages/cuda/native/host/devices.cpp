#include "devices.h"

#include <algorithm>
#include <fstream>
#include <mutex>

#include "common/error.h"
#include "common/host-memory.h"
#include "common/sha256.h"

namespace ckpt {
namespace {

std::mutex mutex;
ckpt_config config{};
uint64_t used_bytes[kHostDevicesMax];

uint64_t free_bytes_locked(uint32_t device) {
  const uint64_t total = config.host_device_bytes;
  return std::min(total - std::min(total, used_bytes[device]), available_shared_bytes());
}

}  // namespace

void devices_init(const ckpt_config& wanted) {
  if (wanted.host_devices == 0 || wanted.host_devices > kHostDevicesMax) {
    fail(CKPT_ERR_INVALID, "host_devices is %u, not 1 to %u", wanted.host_devices, kHostDevicesMax);
  }
  ckpt_config checked = wanted;
  if (checked.host_device_bytes == 0) {
    const uint64_t share = available_shared_bytes() / checked.host_devices;
    checked.host_device_bytes = share / kHugePageBytes * kHugePageBytes;
  }
  std::lock_guard lock(mutex);
  config = checked;
}

// The configuration does not change once ckpt_init has succeeded.
uint32_t devices_count() noexcept { return config.host_devices; }
uint64_t device_total_bytes() noexcept { return config.host_device_bytes; }
uint64_t device_copy_bytes_per_second() noexcept { return config.host_copy_bytes_per_second; }

uint64_t device_free_bytes(uint32_t device) {
  std::lock_guard lock(mutex);
  return free_bytes_locked(device);
}

std::string device_uuid(uint32_t device) {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string seed;
  if (!(file >> seed)) fail(CKPT_ERR_IO, "read /proc/sys/kernel/random/boot_id");
  seed += " ckpt host device " + std::to_string(device);
  uint8_t digest[kSha256Bytes];
  Sha256 hash;
  hash.update(seed.data(), seed.size());
  hash.finish(digest);
  std::string text = "GPU-";
  for (int i = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += format_text("%02x", digest[i]);
  }
  return text;
}

DeviceBytes::DeviceBytes(uint32_t device, uint64_t bytes) : device_(device), bytes_(bytes) {
  std::lock_guard lock(mutex);
  require_memory(format_text("memory of host device %u", device).c_str(), bytes,
                 free_bytes_locked(device));
  used_bytes[device] += bytes;
}

DeviceBytes::~DeviceBytes() {
  std::lock_guard lock(mutex);
  used_bytes[device_] -= bytes_;
}

}  // namespace ckpt
