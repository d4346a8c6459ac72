#include "process-link.h"

#include <algorithm>

namespace ckpt {
namespace {

// A tag: the broadcast's number, or the sender's with kGreeting; with kFailed a status.
constexpr uint64_t kNumberMask = (1ull << 48) - 1;
constexpr int kStatusShift = 48;
constexpr uint64_t kStatusMask = 0xff;
constexpr uint64_t kGreeting = 1ull << 62;
constexpr uint64_t kFailed = 1ull << 63;

constexpr const char* kSend = "send to another process";
constexpr const char* kReceive = "receive from another process";
constexpr const char* kConnect = "connect to the communicator's other processes";

uint32_t milliseconds_until(Clock::time_point deadline) {
  using namespace std::chrono;
  const auto left = duration_cast<milliseconds>(deadline - Clock::now()).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(left, 0, UINT32_MAX));
}

}  // namespace

ProcessLink::ProcessLink() : worker_(Ucx::Params::kFeatureTag, {}) {}

void ProcessLink::connect(const MemberTable& table, uint32_t self) {
  const auto count = static_cast<uint32_t>(table.addresses.size());
  greetings_.resize(count + 1);
  for (uint32_t i = 0; i < count; i++)
    peers_.push_back(i == self ? nullptr : worker_.connect(table.addresses[i]));
  for (uint32_t i = 0; i < count; i++) {
    if (peers_[i] == nullptr) continue;
    greeting_.push_back(
        post_receive(peers_[i], kConnect, kGreeting | i, UINT64_MAX, &greetings_[i], 1));
  }
  const Sends sends = send_tagged(kGreeting | self, &greetings_[count], 1);
  if (!sends.failures_.empty()) throw Error(sends.failures_.front());
  greeting_.insert(greeting_.end(), sends.pending_.begin(), sends.pending_.end());
}

void ProcessLink::wait_connected(Signal* signal, Clock::time_point deadline) {
  for (const Pending& one : greeting_)
    one->completion.wait(signal, milliseconds_until(deadline), kConnect);
}

// A synchronous send is complete when the receiver has it: the sender may leave then.
ProcessLink::Sends ProcessLink::send_tagged(uint64_t tag, const uint8_t* bytes, uint64_t count) {
  Sends sends;
  for (UcxWorker::Peer* peer : peers_) {
    if (peer == nullptr) continue;
    try {
      sends.pending_.push_back(
          worker_.send(peer, kSend, [&](const Ucx::RequestParams& params) {
            return ucx_.tag_send_sync_nbx(peer->endpoint, bytes, count, tag, &params);
          }));
    } catch (const Error& error) {
      sends.failures_.push_back(error);
    }
  }
  return sends;
}

ProcessLink::Sends ProcessLink::send(uint64_t number, const uint8_t* bytes, uint64_t count) {
  return send_tagged(number & kNumberMask, bytes, count);
}

ProcessLink::Sends ProcessLink::send_failure(uint64_t number, const Error& failure) {
  const uint64_t status = static_cast<uint64_t>(failure.status()) & kStatusMask;
  return send_tagged((number & kNumberMask) | status << kStatusShift | kFailed, greetings_.data(),
                     0);
}

void ProcessLink::Sends::wait() const {
  std::vector<Error> failures = failures_;
  for (const Pending& one : pending_) {
    try {
      one->completion.wait(nullptr, UINT32_MAX, kSend);
    } catch (const Error& error) {
      failures.push_back(error);
    }
  }
  if (!failures.empty()) throw Error(failures.front());
}

ProcessLink::Pending ProcessLink::post_receive(UcxWorker::Peer* peer, const char* what,
                                               uint64_t tag, uint64_t mask, uint8_t* bytes,
                                               uint64_t count) {
  return worker_.receive(peer, what, [&](const Ucx::RequestParams& params) {
    return ucx_.tag_recv_nbx(worker_.worker(), bytes, count, tag, mask, &params);
  });
}

void ProcessLink::receive(uint64_t number, uint32_t process, uint8_t* bytes, uint64_t count) {
  const Pending one = post_receive(peers_[process], kReceive, number & kNumberMask,
                                   kNumberMask | kGreeting, bytes, count);
  one->completion.wait(nullptr, UINT32_MAX, kReceive);
  const auto& [tag, length] = one->received;
  if ((tag & kFailed) != 0) {
    fail(static_cast<ckpt_status>(tag >> kStatusShift & kStatusMask),
         "the stream of the broadcast's root has failed, in another process");
  }
  if (length != count) {
    fail(CKPT_ERR_INVALID, "the members call different broadcasts: %llu bytes and %llu",
         static_cast<unsigned long long>(count), static_cast<unsigned long long>(length));
  }
}

void ProcessLink::drop(uint64_t number, uint32_t process) {
  const Pending one = post_receive(peers_[process], kReceive, number & kNumberMask,
                                   kNumberMask | kGreeting, greetings_.data(), 0);
  try {
    one->completion.wait(nullptr, UINT32_MAX, kReceive);
  } catch (const Error&) {  // it is cut off, which is an error to UCX
  }
}

void ProcessLink::abort() {
  worker_.abort(Error(CKPT_ERR_ABORTED, "the communicator was aborted"));
}

}  // namespace ckpt
