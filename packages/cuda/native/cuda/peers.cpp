#include "peers.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>

#include "cuda-api.h"

namespace ckpt {

void let_devices_meet(uint32_t one, uint32_t other) {
  if (one == other) return;
  static std::mutex mutex;
  static std::set<std::pair<uint32_t, uint32_t>> met;
  const std::pair<uint32_t, uint32_t> both(std::minmax(one, other));
  const std::lock_guard lock(mutex);
  if (met.count(both) > 0) return;
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
  met.insert(both);
}

}  // namespace ckpt
