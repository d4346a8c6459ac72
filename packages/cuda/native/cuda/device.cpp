#include <cctype>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "cuda-api.h"

namespace ckpt {
namespace {

// NVML prints the uuid of a device in this form, and the engines key their workers by it.
std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  for (int i = 0; i < 16; i++) {
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    text += hex;
    if (i == 3 || i == 5 || i == 7 || i == 9) text += '-';
  }
  return text;
}

// sysfs gives -1 itself on a machine with one node.
int32_t numa_node_of(std::string pci) {
  for (char& c : pci) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  std::ifstream file("/sys/bus/pci/devices/" + pci + "/numa_node");
  int32_t node = -1;
  return file >> node ? node : -1;
}

void describe(uint32_t device, ckpt_device_info& info) {
  use_device(device);
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, static_cast<int>(device)), "cudaGetDeviceProperties");
  char pci[32] = "";
  check_cuda(cudaDeviceGetPCIBusId(pci, sizeof pci, static_cast<int>(device)), "cudaDeviceGetPCIBusId");
  std::memset(&info, 0, sizeof info);
  copy_text(properties.name, info.name, sizeof info.name);
  copy_text(uuid_text(properties.uuid).c_str(), info.uuid, sizeof info.uuid);
  copy_text(pci, info.pci, sizeof info.pci);
  info.total_bytes = properties.totalGlobalMem;
  info.numa_node = numa_node_of(pci);
}

}  // namespace
}  // namespace ckpt

using namespace ckpt;

int32_t ckpt_device_count(uint32_t* count_p) {
  return guard([&] { require(count_p, "count_p") = device_count(); });
}

int32_t ckpt_device_describe(uint32_t device, ckpt_device_info* info_p) {
  return guard([&] { describe(device, require(info_p, "info_p")); });
}

int32_t ckpt_device_memory(uint32_t device, uint64_t* free_p, uint64_t* total_p) {
  return guard([&] {
    require(free_p, "free_p");
    require(total_p, "total_p");
    use_device(device);
    size_t free_bytes = 0, total_bytes = 0;
    check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    *free_p = free_bytes;
    *total_p = total_bytes;
  });
}
