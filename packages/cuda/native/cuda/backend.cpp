// The functions of namespace backend: devices, and which class stands for which object.
#include "backend.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <fstream>
#include <string>

#include "communicator.h"
#include "cuda-api.h"
#include "event.h"
#include "group.h"
#include "memory.h"
#include "outstanding.h"
#include "stream.h"

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

// Mappings of files are populated and pinned in pieces by several threads (twice the rate of one);
// anonymous memory is one registration, so that no copy has to be cut.
constexpr uint64_t kPinPieces = 16;
constexpr uint64_t kPinPieceBytesMin = 32ull << 20;
constexpr uint64_t kPinPieceBytesMax = 128ull << 20;

}  // namespace

namespace backend {

const char* kind() noexcept { return "cuda"; }

void init(const ckpt_config&) {
  if (ckpt::device_count() == 0) fail(CKPT_ERR_UNSUPPORTED, "no CUDA device");
}

uint32_t device_count() { return ckpt::device_count(); }

void device_describe(uint32_t device, ckpt_device_info& info) {
  cudaDeviceProp properties;  // asking needs no context
  check_cuda(cudaGetDeviceProperties(&properties, static_cast<int>(device)), "cudaGetDeviceProperties");
  char pci[32] = "";
  check_cuda(cudaDeviceGetPCIBusId(pci, sizeof pci, static_cast<int>(device)), "cudaDeviceGetPCIBusId");
  copy_text(properties.name, info.name, sizeof info.name);
  copy_text(uuid_text(properties.uuid).c_str(), info.uuid, sizeof info.uuid);
  copy_text(pci, info.pci, sizeof info.pci);
  info.total_bytes = properties.totalGlobalMem;
  info.numa_node = numa_node_of(pci);
}

void device_memory(uint32_t device, uint64_t& free_bytes, uint64_t& total_bytes) {
  use_device(device);
  size_t free_now = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free_now, &total), "cudaMemGetInfo");
  free_bytes = free_now;
  total_bytes = total;
}

std::shared_ptr<Memory> memory_alloc(uint32_t device, uint64_t bytes) { return std::make_shared<CudaMemory>(device, bytes); }

std::shared_ptr<Memory> memory_open(uint32_t device, const uint8_t* handle, uint64_t bytes) {
  return std::make_shared<CudaMemory>(device, handle, bytes);
}

std::shared_ptr<Stream> stream_create(uint32_t device) { return std::make_shared<CudaStream>(device); }
std::shared_ptr<Event> event_create(uint32_t device) { return std::make_shared<CudaEvent>(device); }
std::shared_ptr<Group> group_create(uint32_t members) { return std::make_shared<CudaGroup>(members); }

// NCCL's ids are for members of any processes.
void communicator_id(uint32_t sharers, uint32_t, uint8_t* id) {
  Nccl::UniqueId unique;
  const Nccl& nccl = Nccl::get();
  require_shared_device(nccl, sharers);
  nccl.check(nccl.get_unique_id(&unique), nullptr, "ncclGetUniqueId");
  std::copy_n(unique.internal, CKPT_COMMUNICATOR_ID_BYTES, id);
}

std::shared_ptr<Communicator> communicator_create(const CommunicatorPlace& place,
                                                  std::shared_ptr<Signal> signal,
                                                  uint32_t timeout_ms) {
  return NcclCommunicator::create(place, std::move(signal), timeout_ms);
}

PinPlan pin_plan(uint64_t bytes, bool read_only) {
  if (!read_only || bytes <= kPinPieceBytesMin) return {true, 0};
  const uint64_t piece = std::clamp(bytes / kPinPieces, kPinPieceBytesMin, kPinPieceBytesMax);
  return {true, piece / kPinPieceBytesMin * kPinPieceBytesMin};
}

void pin_host(void* address, uint64_t bytes, bool read_only) {
  use_any_device();
  const unsigned flags = cudaHostRegisterPortable | (read_only ? cudaHostRegisterReadOnly : 0u);
  check_cuda(cudaHostRegister(address, bytes, flags), "cudaHostRegister");
}

void unpin_host(void* address) noexcept {
  const QuietDevice quiet;
  try {
    use_any_device();
  } catch (const Error&) {
    return;
  }
  if (cudaHostUnregister(address) != cudaSuccess) cudaGetLastError();
}

}  // namespace backend
}  // namespace ckpt
