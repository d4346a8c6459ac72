#include "communicator.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "completion.h"
#include "outstanding.h"
#include "signals.h"
#include "threads.h"

namespace ckpt {
namespace {

constexpr int kSharedDeviceVersionMin = 23000;
constexpr const char* kSharedDeviceSetting = "NCCL_MULTI_RANK_GPU_ENABLE";
// NCCL never takes more.
constexpr int kCtasMax = 32;
constexpr uint64_t kWarmUpBytes = 4ull << 20;
constexpr uint64_t kWarmUpBytesSmall = 1 << 10;
constexpr std::chrono::microseconds kPoll{100};
constexpr std::chrono::milliseconds kSpin{1};
// For NCCL to take one broadcast, which it does at once.
constexpr uint32_t kEnqueueMs = 10000;
constexpr uint32_t kAbortMs = 5000;

// The kernels of all members wait for each other: they must be on the device at the same time, and
// leave room for what else runs there.
int ctas_of(uint32_t device, uint32_t sharers) {
  if (sharers == 1) return Nccl::kUndefined;
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount,
                                    static_cast<int>(device)),
             "the device's processors");
  return std::clamp(processors / static_cast<int>(2 * sharers), 1, kCtasMax);
}

// What the first broadcasts use. Made before the members meet: from then on a call that waits for
// the device, as these may, would wait for another member's kernel, and that for this member.
struct Scratch {
  explicit Scratch(uint32_t of_device) : device(of_device) {
    use_device(device);
    check_cuda(cudaMalloc(&bytes, kWarmUpBytes), "cudaMalloc");
    const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) cudaFree(bytes);
    check_cuda(error, "cudaStreamCreate");
  }
  ~Scratch() {
    const QuietDevice quiet;
    if (cudaSetDevice(static_cast<int>(device)) != cudaSuccess) return;
    cudaStreamDestroy(stream);
    cudaFree(bytes);
  }
  Scratch(const Scratch&) = delete;
  uint32_t device;
  void* bytes = nullptr;
  cudaStream_t stream = nullptr;
};

}  // namespace

void require_shared_device(const Nccl& nccl, uint32_t sharers) {
  if (sharers == 1) return;
  if (nccl.version < kSharedDeviceVersionMin) {
    fail(CKPT_ERR_UNSUPPORTED,
         "%u ranks on one device need NCCL 2.30 or newer, and this is NCCL %s", sharers,
         nccl.version_text().c_str());
  }
  const char* setting = std::getenv(kSharedDeviceSetting);
  if (setting == nullptr || std::string(setting) != "1") {
    fail(CKPT_ERR_UNSUPPORTED, "%u ranks on one device need %s=1", sharers, kSharedDeviceSetting);
  }
}

std::shared_ptr<NcclCommunicator> NcclCommunicator::create(const CommunicatorPlace& place,
                                                           std::shared_ptr<Signal> signal,
                                                           uint32_t timeout_ms) {
  const Limit limit(signal.get(), timeout_ms);
  const auto self = std::make_shared<NcclCommunicator>(place, std::move(signal));
  require_shared_device(self->nccl_, place.sharers);
  auto scratch = std::make_shared<Scratch>(place.device);
  try {
    self->init(place, limit);
    self->warm_up(scratch->bytes, scratch->stream, limit);
  } catch (...) {
    // others may wait for this member still, which has to say first that it does not come
    start_thread("ckpt-scratch", [left = std::move(scratch)]() mutable { left = nullptr; }).detach();
    self->end();
    throw;
  }
  return self;
}

void NcclCommunicator::init(const CommunicatorPlace& place, const Limit& limit) {
  Nccl::UniqueId id;
  std::copy_n(place.id, sizeof id.internal, id.internal);
  Nccl::Config config;
  config.max_ctas = ctas_of(place.device, place.sharers);
  std::lock_guard lock(mutex_);
  nccl_.check(nccl_.comm_init_rank_config(&comm_, static_cast<int>(place.members), id,
                                          static_cast<int>(place.member), &config),
              comm_, "ncclCommInitRankConfig");
  settle_locked("the communicator's other members", limit);
}

void NcclCommunicator::warm_up(void* scratch, cudaStream_t stream, const Limit& limit) {
  const Outstanding outstanding;
  for (const uint64_t bytes : {kWarmUpBytesSmall, kWarmUpBytes}) {
    enqueue(stream, scratch, bytes, 0, limit);
    cudaError_t state;
    while ((state = cudaStreamQuery(stream)) == cudaErrorNotReady) {
      limit.check("the communicator's first broadcast", aborted_);
      std::this_thread::sleep_for(kPoll);
    }
    check_cuda(state, "the communicator's first broadcast");
  }
}

void NcclCommunicator::settle_locked(const char* what, const Limit& limit) {
  const auto spin_until = Clock::now() + kSpin;
  for (;;) {
    int state = Nccl::kSuccess;
    nccl_.check(nccl_.comm_get_async_error(comm_, &state), comm_, "ncclCommGetAsyncError");
    if (state == Nccl::kSuccess) return;
    nccl_.check(state, comm_, what);
    limit.check(what, aborted_);
    // a broadcast is on its way within some ten microseconds
    if (Clock::now() < spin_until) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPoll);
    }
  }
}

void NcclCommunicator::enqueue(cudaStream_t stream, void* bytes, uint64_t count, uint32_t root,
                               const Limit& limit) {
  std::lock_guard lock(mutex_);
  if (aborted_) fail(CKPT_ERR_ABORTED, "the communicator was aborted");
  const int result = nccl_.broadcast(bytes, bytes, count, Nccl::kUint8, static_cast<int>(root),
                                     comm_, stream);
  nccl_.check(result, comm_, "ncclBroadcast");
  if (result == Nccl::kInProgress) settle_locked("ncclBroadcast", limit);
}

void NcclCommunicator::broadcast(std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory,
                                 uint32_t root, uint64_t offset, uint64_t bytes) {
  if (aborted_) fail(CKPT_ERR_ABORTED, "the communicator was aborted");
  auto& on = static_cast<CudaStream&>(*stream);
  on.add({{CudaStream::After::success,
           [self = shared_from_this(), memory = std::static_pointer_cast<CudaMemory>(memory), root,
            offset, bytes](CudaStream::Turn& turn) {
             turn.use({memory, self, std::make_shared<Outstanding>()}, [&] {
               self->enqueue(turn.stream, memory->at(offset), bytes, root,
                             Limit(self->signal_.get(), kEnqueueMs));
             });
           }}});
}

// NCCL says nothing of how long it may take.
void NcclCommunicator::abort() {
  aborted_ = true;  // ends what settle_locked waits for
  const auto ended = std::make_shared<Completion>();
  start_thread("ckpt-abort", [self = shared_from_this(), ended] {
    try {
      self->end_locked_out();
      ended->complete(CKPT_OK, "");
    } catch (const Error& error) {
      ended->complete(error.status(), error.text());
    }
  }).detach();
  ended->wait(nullptr, kAbortMs, "ncclCommAbort");
}

void NcclCommunicator::end_locked_out() {
  std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return;
  const Nccl::Comm comm = std::exchange(comm_, nullptr);
  nccl_.check(nccl_.comm_abort(comm), nullptr, "ncclCommAbort");
}

// Without a word: there is a better reason already.
void NcclCommunicator::end() noexcept {
  try {
    abort();
  } catch (const std::exception&) {
  }
}

// Whoever has made it destroys its handle, which aborts: what is left was aborted.
NcclCommunicator::~NcclCommunicator() = default;

}  // namespace ckpt
