// ckpt-tests --child bench-read: GB/s of reads of 256 MiB of another process, beside those of a
// plain loop over ucp_get_nbx that does nothing else. Every byte is checked once.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "common/p2p-frames.h"
#include "common/ucx-api.h"
#include "environment.h"
#include "p2p-owner.h"

namespace test {
namespace {

using ckpt::Ucx;

constexpr uint64_t kBytes = 256ull << 20;
constexpr uint64_t kGetBytes = 4ull << 20;
constexpr uint32_t kGetsMax = 4;
constexpr uint32_t kRounds = 6;

// As little as there can be around UCX: one thread that spins.
class PlainLoop {
 public:
  explicit PlainLoop(const Owner& owner) {
    Ucx::Config* config = nullptr;
    ucx_.check(ucx_.config_read(nullptr, nullptr, &config), "config");
    Ucx::Params params{};
    params.field_mask = Ucx::Params::kFeatures;
    params.features = Ucx::Params::kFeatureRma;
    ucx_.check(ucx_.init_version(1, 12, &params, config, &context_), "init");
    ucx_.config_release(config);
    Ucx::WorkerParams worker{};
    ucx_.check(ucx_.worker_create(context_, &worker, &worker_), "worker");
    const std::vector<uint8_t>& address = owner.address();
    const auto plain = ckpt::read_address(address.data(), static_cast<uint32_t>(address.size()));
    Ucx::EndpointParams endpoint{};
    endpoint.field_mask = Ucx::EndpointParams::kRemoteAddress | Ucx::EndpointParams::kErrorMode;
    endpoint.address = reinterpret_cast<const Ucx::Address*>(plain.data());
    endpoint.error_mode = Ucx::EndpointParams::kErrorModePeer;
    ucx_.check(ucx_.ep_create(worker_, &endpoint, &endpoint_), "endpoint");
    range_ = ckpt::read_key(owner.key().data(), static_cast<uint32_t>(owner.key().size()));
    ucx_.check(ucx_.ep_rkey_unpack(endpoint_, range_.packed.data(), &key_), "key");
    to_ = static_cast<uint8_t*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  }
  ~PlainLoop() {
    Ucx::RequestParams params{};
    params.mask = Ucx::RequestParams::kFlags;
    params.flags = Ucx::RequestParams::kCloseForce;
    ucx_.rkey_destroy(key_);
    const auto closing = ucx_.ep_close_nbx(endpoint_, &params);
    if (Ucx::is_request(closing)) wait(closing);
    ucx_.worker_destroy(worker_);
    ucx_.cleanup(context_);
    munmap(to_, kBytes);
  }
  void round() {
    Ucx::RequestParams params{};
    void* requests[kGetsMax] = {};
    uint64_t count = 0;
    for (uint64_t at = 0; at < kBytes; at += kGetBytes, count++) {
      void*& slot = requests[count % kGetsMax];
      if (Ucx::is_request(slot)) wait(slot);
      slot = ucx_.get_nbx(endpoint_, to_ + at, kGetBytes, range_.address + at, key_, &params);
      CHECK(!Ucx::is_error(slot));
    }
    for (void* request : requests)
      if (Ucx::is_request(request)) wait(request);
  }

 private:
  void wait(void* request) {
    while (ucx_.request_check_status(request) > 0) ucx_.worker_progress(worker_);
    ucx_.check(ucx_.request_check_status(request), "get");
    ucx_.request_free(request);
  }
  const Ucx& ucx_ = Ucx::get();
  Ucx::Context context_ = nullptr;
  Ucx::Worker worker_ = nullptr;
  Ucx::Endpoint endpoint_ = nullptr;
  Ucx::RemoteKey key_ = nullptr;
  ckpt::RemoteRange range_;
  uint8_t* to_ = nullptr;
};

double gigabytes_per_second(const std::function<void()>& round) {
  round();
  double best = 1e9;
  for (uint32_t i = 0; i < kRounds; i++) {
    const auto start = Clock::now();
    round();
    best = std::min(best, seconds_since(start));
  }
  return static_cast<double>(kBytes) / best / 1e9;
}

}  // namespace

int bench_read_child(const std::vector<std::string>&) {
  const ckpt_config config{1, 0, kBytes + (16ull << 20), 0, 0};
  OK(ckpt_init(&config));
  const std::string digest = sha256_of(random_bytes(kBytes, kOwnerSeed));
  printf("# reads of 256 MiB of another process, the best of %u\n", kRounds);
  printf("# UCX_TLS        by        GB/s   plain   ratio  #wrong\n");
  int wrong_count = 0;
  for (const char* transports : {"tcp", "posix,self", "all"}) {
    const Environment setting("UCX_TLS", transports);
    const Owner owner(kBytes);
    const Reader reader(owner);
    const uint32_t stream = new_stream(), memory = new_memory(kBytes);
    const double rate = gigabytes_per_second([&] {
      OK(ckpt_copy_remote(stream, memory, 0, reader.remote, 0, kBytes));
      OK(ckpt_stream_sync(stream, 0, 60000));
    });
    const int wrong = memory_sha256(memory, 0, kBytes) == digest ? 0 : 1;
    char by[64] = "";
    OK(ckpt_p2p_transport(reader.peer, by, sizeof by));
    OK(ckpt_stream_destroy(stream));
    OK(ckpt_memory_free(memory));
    PlainLoop plain(owner);
    const double plain_rate = gigabytes_per_second([&] { plain.round(); });
    printf("%-16s %-8s %6.2f  %6.2f  %5.0f%%  %d\n", transports, by, rate, plain_rate,
           100 * rate / plain_rate, wrong);
    fflush(stdout);
    wrong_count += wrong;
  }
  return wrong_count;
}

}  // namespace test
