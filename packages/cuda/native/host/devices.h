// The virtual devices: their number, their names and how much of their memory is taken.
#pragma once

#include <cstdint>
#include <string>

#include "ckpt.h"

namespace ckpt {

constexpr uint32_t kHostDevicesMax = 64;

void devices_init(const ckpt_config& config);
uint32_t devices_count() noexcept;
uint64_t device_total_bytes() noexcept;
uint64_t device_free_bytes(uint32_t device);
uint64_t device_copy_bytes_per_second() noexcept;

// The same in every process of this machine until it is booted again.
std::string device_uuid(uint32_t device);

// Takes bytes of a device's memory for as long as it lives; CKPT_ERR_MEMORY when they are not free.
class DeviceBytes {
 public:
  DeviceBytes(uint32_t device, uint64_t bytes);
  ~DeviceBytes();
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

 private:
  uint32_t device_;
  uint64_t bytes_;
};

}  // namespace ckpt
