#include "p2p.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "p2p-frames.h"
#include "random.h"

namespace ckpt {
namespace {

constexpr uint32_t kEndMs = 5000;
constexpr size_t kGetsMax = 4;

UcxWorker::Settings settings_of(const std::string& devices) {
  UcxWorker::Settings settings{{"RNDV_THRESH", "inf"}};  // see p2p-server.h
  if (!devices.empty()) settings.push_back({"NET_DEVICES", devices});
  return settings;
}

}  // namespace

P2p::P2p(const std::string& devices)
    : worker_(Ucx::Params::kFeatureRma | Ucx::Params::kFeatureTag, settings_of(devices)) {
  server_.step();  // before the thread does
  worker_.set_step([this] {
    const bool again = server_.step();
    reads_.step();
    return again;
  });
}

P2p::~P2p() { worker_.set_step(nullptr); }

std::vector<uint8_t> P2p::address() const { return frame_address(worker_.address()); }

std::vector<uint8_t> P2p::share(std::shared_ptr<Buffer> buffer) {
  std::lock_guard lock(mutex_);
  if (shares_.count(buffer.get()) != 0) fail(CKPT_ERR_STATE, "the buffer is shared already");
  std::shared_ptr<P2pMemory> memory;
  if (buffer->file() == nullptr)
    memory = std::make_shared<P2pMemory>(worker_, buffer->address(), buffer->bytes(), true);
  auto key = frame_key(reinterpret_cast<uint64_t>(buffer->address()), buffer->bytes(),
                       memory == nullptr ? std::vector<uint8_t>() : worker_.pack(memory->get()));
  const Buffer* of = buffer.get();
  server_.share(buffer);
  shares_.emplace(of, Share{std::move(buffer), std::move(memory)});
  return key;
}

void P2p::unshare(const Buffer& buffer) {
  std::lock_guard lock(mutex_);
  const auto found = shares_.find(&buffer);
  if (found == shares_.end()) fail(CKPT_ERR_STATE, "the buffer is not shared");
  server_.unshare(buffer);
  shares_.erase(found);
}

std::shared_ptr<P2pMemory> P2p::memory_for(const Buffer& buffer, uint64_t offset, uint64_t bytes) {
  {
    std::lock_guard lock(mutex_);
    const auto found = shares_.find(&buffer);
    if (found != shares_.end()) return found->second.memory;
  }
  return std::make_shared<P2pMemory>(worker_, buffer.address() + offset, bytes, false);
}

void P2p::close() {
  worker_.abort(Error(CKPT_ERR_ABORTED, "reads from peers were closed"));
  worker_.wait_ended(kEndMs);
  std::lock_guard lock(mutex_);
  shares_.clear();
}

P2pPeer::P2pPeer(std::shared_ptr<P2p> p2p, const uint8_t* address, uint32_t length)
    : p2p_(std::move(p2p)), peer_(p2p_->worker().connect(read_address(address, length))) {
  transport_ = transport_of(p2p_->worker().describe(peer_));
  if (!reads_itself()) introduce();
}

void P2pPeer::introduce() {
  std::call_once(introduced_, [this] { send_address(); });
}

void P2pPeer::send_address() {
  fill_random(&reader_, sizeof reader_);
  const ReaderMessage head{reader_};
  const std::vector<uint8_t>& address = p2p_->worker().address();
  const auto message = std::make_shared<std::vector<uint8_t>>(sizeof head + address.size());
  std::memcpy(message->data(), &head, sizeof head);
  std::copy(address.begin(), address.end(), message->begin() + sizeof head);
  tell("connect to a peer", message);
}

void P2pPeer::close() {
  std::call_once(introduced_, [] {});  // nor is it from now on
  if (reader_ != 0) leave();
  p2p_->worker().disconnect(peer_);
}

// It goes at once where there is room for it; an owner for which there is none finds out when it sends,
// or when this process ends.
void P2pPeer::leave() try {
  const ReaderMessage head{reader_};
  const auto message = std::make_shared<std::vector<uint8_t>>(sizeof head);
  std::memcpy(message->data(), &head, sizeof head);
  tell("leave a peer", message);
} catch (const Error&) {  // the peer is lost, or all of it ends
}

void P2pPeer::tell(const char* what, std::shared_ptr<const std::vector<uint8_t>> message) {
  const Ucx& ucx = Ucx::get();
  p2p_->worker()
      .send(peer_, what,
            [&](const Ucx::RequestParams& params) {
              return ucx.tag_send_nbx(peer_->endpoint, message->data(), message->size(), kReaderTag,
                                      &params);
            })
      ->keeps = message;
}

P2pRemote::P2pRemote(std::shared_ptr<P2pPeer> peer, const uint8_t* key, uint32_t length)
    : peer_(std::move(peer)) {
  const RemoteRange range = read_key(key, length);
  address_ = range.address;
  bytes_ = range.bytes;
  if (range.packed.empty()) {
    peer_->introduce();
  } else if (peer_->reads_itself()) {
    key_ = peer_->p2p().worker().unpack(peer_->peer(), range.packed);
  }
}

P2pRemote::~P2pRemote() { peer_->p2p().worker().release(key_); }

// The room is there before it is asked for, so that nothing that comes has to be kept elsewhere.
UcxWorker::Pending P2pRemote::ask(uint64_t address, void* to, uint64_t bytes) {
  UcxWorker& worker = peer_->p2p().worker();
  UcxWorker::Peer* peer = peer_->peer();
  const auto message = std::make_shared<const ReadMessage>(
      ReadMessage{peer_->reader(), peer_->p2p().next_read(), address, bytes});
  const auto data = worker.receive_into(peer, kRead, to, bytes, message->number);
  try {
    worker
        .send(peer, kRead,
              [&](const Ucx::RequestParams& params) {
                return ucx_.tag_send_nbx(peer->endpoint, message.get(), sizeof *message, kReadTag,
                                         &params);
              })
        ->keeps = message;
  } catch (...) {
    worker.cancel(data);
    throw;
  }
  return data;
}

UcxWorker::Pending P2pRemote::get(uint64_t offset, void* to, uint64_t bytes,
                                  Ucx::Memory registered) {
  if (!reads_itself()) return ask(address_ + offset, to, bytes);
  UcxWorker::Peer* peer = peer_->peer();
  return peer_->p2p().worker().send(peer, kRead, [&](const Ucx::RequestParams& given) {
    Ucx::RequestParams params = given;
    if (registered != nullptr) {
      params.mask |= Ucx::RequestParams::kMemory;
      params.memory = registered;
    }
    return ucx_.get_nbx(peer->endpoint, to, bytes, address_ + offset, key_, &params);
  });
}

void P2pRemote::read(uint64_t offset, void* to, uint64_t bytes) {
  std::deque<UcxWorker::Pending> pending;
  std::optional<Error> failure;
  uint64_t done = 0;
  while (!pending.empty() || (done < bytes && !failure)) {
    try {
      if (done < bytes && !failure && pending.size() < kGetsMax) {
        const uint64_t count = std::min(kGetBytes, bytes - done);
        pending.push_back(get(offset + done, static_cast<uint8_t*>(to) + done, count, nullptr));
        done += count;
        continue;
      }
      const UcxWorker::Pending first = std::move(pending.front());
      pending.pop_front();
      first->completion.wait(nullptr, UINT32_MAX, kRead);
    } catch (const Error& error) {
      if (!failure) failure = error;
    }
  }
  if (failure) throw Error(*failure);
}

}  // namespace ckpt
