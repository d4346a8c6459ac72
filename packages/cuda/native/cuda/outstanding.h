// Broadcasts of NCCL that the devices of this process have not ended, and those who wait for them.
//
// Its kernels wait on the device for those of the other members. A call of CUDA that waits for the
// device (cudaFree, cudaHostUnregister) keeps the driver to itself meanwhile, so that another
// member of this process cannot launch the kernel that all wait for: neither ends. Such calls wait
// here first, where they keep nothing.
#pragma once

#include <memory>

namespace ckpt {

// One broadcast, or a communicator that is being made, while it exists.
class Outstanding {
 public:
  Outstanding();
  ~Outstanding();
  Outstanding(const Outstanding&) = delete;
  Outstanding& operator=(const Outstanding&) = delete;
};

// Until there is none, but no longer than half a minute: whoever waited for that is told by its own
// deadline. Returns at once on a thread that ends what is outstanding.
void wait_for_outstanding() noexcept;

}  // namespace ckpt
