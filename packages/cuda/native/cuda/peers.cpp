#include "peers.h"

#include <utility>

#include "cuda-api.h"

namespace ckpt {

void let_devices_meet(uint32_t one, uint32_t other) {
  if (one == other) return;
  for (const auto& [from, to] : {std::pair{one, other}, std::pair{other, one}}) {
    int able = 0;
    check_cuda(cudaDeviceCanAccessPeer(&able, static_cast<int>(from), static_cast<int>(to)),
               "cudaDeviceCanAccessPeer");
    if (able == 0) continue;
    use_device(from);
    const cudaError_t error = cudaDeviceEnablePeerAccess(static_cast<int>(to), 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
      cudaGetLastError();
    } else {
      check_cuda(error, "cudaDeviceEnablePeerAccess");
    }
  }
}

}  // namespace ckpt
