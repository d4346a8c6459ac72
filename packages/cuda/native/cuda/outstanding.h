// Broadcasts of NCCL that the devices of this process have not ended, and those who wait for them.
//
// Its kernels wait on the device for those of the other members. A call of CUDA that waits for the
// device (cudaFree, cudaHostUnregister) keeps the driver to itself meanwhile, so that another
// member of this process cannot launch the kernel that all wait for: neither ends. Such a call is
// made when nothing is outstanding, and nothing is launched until it has returned.
#pragma once

namespace ckpt {

// One broadcast while it exists. Waits for a QuietDevice.
class Outstanding {
 public:
  Outstanding();
  ~Outstanding();
  Outstanding(const Outstanding&) = delete;
  Outstanding& operator=(const Outstanding&) = delete;
};

// Around a call that waits for the device. Waits until nothing is outstanding, but no longer than
// half a minute: then the call is made all the same, and who waits for the broadcast is told by a
// deadline of its own. Does not wait on a thread that ends what is outstanding.
class QuietDevice {
 public:
  QuietDevice() noexcept;
  ~QuietDevice();
  QuietDevice(const QuietDevice&) = delete;
  QuietDevice& operator=(const QuietDevice&) = delete;

 private:
  bool quiet_ = false;
};

}  // namespace ckpt
