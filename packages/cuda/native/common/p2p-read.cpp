#include "p2p-read.h"

#include <algorithm>
#include <utility>

#include "p2p.h"

namespace ckpt {
namespace {

// 32 MiB of each peer.
constexpr size_t kGetsMax = 8;

}  // namespace

std::shared_ptr<P2pRead> P2pRead::start(std::vector<Piece> pieces, std::shared_ptr<Buffer> buffer,
                                        std::shared_ptr<Signal> signal) {
  std::shared_ptr<P2pRead> read;  // goes behind the run, for whose end it waits
  const auto run = std::make_shared<P2pReadRun>(std::make_shared<State>());
  read = std::make_shared<P2pRead>(std::move(pieces), std::move(buffer), run->state);
  if (signal != nullptr) run->state->completion.notify(std::move(signal));
  read->begin(run);
  return read;
}

P2pRead::P2pRead(std::vector<Piece> pieces, std::shared_ptr<Buffer> buffer,
                 std::shared_ptr<State> state)
    : pieces_(std::move(pieces)), buffer_(std::move(buffer)), state_(std::move(state)) {}

void P2pRead::begin(const std::shared_ptr<P2pReadRun>& run) {
  std::map<P2pPeer*, P2pReads::Part> parts;
  for (const Piece& piece : pieces_) {
    if (piece.bytes == 0) continue;
    P2pReads::Part& part = parts[&piece.remote->peer()];
    part.run = run;
    part.left.push_back({piece.remote.get(), piece.remote_offset,
                         buffer_->address() + piece.buffer_offset, piece.bytes});
  }
  for (auto& [peer, part] : parts) {
    const bool registers = std::any_of(part.left.begin(), part.left.end(), [](const auto& range) {
      return range.from->reads_itself();
    });
    if (registers) part.registered = registered_for(peer->p2p());
    peer->p2p().reads().add(std::move(part));
  }
}

// Else each get would register what it writes, in the worker's thread: UCX keeps no registrations,
// because it must not patch munmap.
Ucx::Memory P2pRead::registered_for(P2p& p2p) try {
  auto& memory = registered_[&p2p];
  if (memory != nullptr) return memory->get();
  uint64_t first = UINT64_MAX, end = 0;
  for (const Piece& piece : pieces_) {
    if (piece.bytes == 0 || !piece.remote->reads_itself()) continue;
    first = std::min(first, piece.buffer_offset);
    end = std::max(end, piece.buffer_offset + piece.bytes);
  }
  memory = p2p.memory_for(*buffer_, first, end - first);
  return memory->get();
} catch (const Error& error) {
  state_->fail(error.status(), error.text());
  return nullptr;
}

bool P2pRead::query() const {
  // it may end between the two
  if (!state_->completion.done()) return false;
  state_->completion.check();
  return true;
}

void P2pRead::close() {
  state_->fail(CKPT_ERR_ABORTED, "the read was destroyed");
  try {
    state_->completion.wait(nullptr, UINT32_MAX, P2pRemote::kRead);
  } catch (const Error&) {  // what ended it
  }
}

void P2pRead::State::fail(ckpt_status status, const std::string& text) {
  const bool named = text.find(P2pRemote::kRead) != std::string::npos;
  std::lock_guard lock(mutex);
  if (!failure) failure = Error(status, named ? text : P2pRemote::kRead + (": " + text));
}

bool P2pRead::State::failed() {
  std::lock_guard lock(mutex);
  return failure.has_value();
}

P2pReadRun::~P2pReadRun() {
  std::optional<Error> failure;
  {
    std::lock_guard lock(state->mutex);
    failure = state->failure;
  }
  if (failure) {
    state->completion.complete(failure->status(), failure->text());
  } else {
    state->completion.complete(CKPT_OK, "");
  }
}

void P2pReads::add(Part part) {
  part.under_way.reserve(kGetsMax);
  std::lock_guard lock(mutex_);
  parts_.push_back(std::move(part));
  if (step(parts_.back())) parts_.pop_back();
}

void P2pReads::step() {
  std::lock_guard lock(mutex_);
  parts_.remove_if([](Part& part) { return step(part); });
}

bool P2pReads::step(Part& part) {
  take_ended(part);
  post(part);
  return part.under_way.empty();
}

void P2pReads::take_ended(Part& part) {
  const auto ended = [&part](const UcxWorker::Pending& get) {
    const ckpt_status status = get->completion.status();
    if (status == CKPT_NOT_READY) return false;
    if (status != CKPT_OK) part.run->state->fail(status, get->completion.text());
    return true;
  };
  auto& gets = part.under_way;
  gets.erase(std::remove_if(gets.begin(), gets.end(), ended), gets.end());
}

void P2pReads::post(Part& part) {
  P2pRead::State& state = *part.run->state;
  try {
    while (!part.left.empty() && part.under_way.size() < kGetsMax && !state.failed()) {
      Range& range = part.left.front();
      const uint64_t bytes = std::min(P2pRemote::kGetBytes, range.bytes);
      part.under_way.push_back(range.from->get(range.offset, range.to, bytes, part.registered));
      range.offset += bytes;
      range.to += bytes;
      range.bytes -= bytes;
      if (range.bytes == 0) part.left.pop_front();
    }
  } catch (const Error& error) {
    state.fail(error.status(), error.text());
  } catch (const std::bad_alloc&) {
    state.fail(CKPT_ERR_MEMORY, "out of host memory");
  }
}

}  // namespace ckpt
