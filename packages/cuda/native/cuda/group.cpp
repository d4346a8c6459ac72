#include "group.h"

#include "peers.h"

namespace ckpt {

void CudaGroup::require_not_aborted_locked() const {
  if (aborted_) fail(CKPT_ERR_ABORTED, "the group was aborted");
}

void CudaGroup::join(uint32_t member, std::shared_ptr<Stream> stream,
                     std::shared_ptr<Memory> memory) {
  const auto on = std::static_pointer_cast<CudaStream>(std::move(stream));
  std::lock_guard lock(mutex_);
  require_not_aborted_locked();
  Member& self = joined_[member];
  if (self.joined) fail(CKPT_ERR_STATE, "member %u has joined", member);
  if (on->device() != memory->device()) {
    fail(CKPT_ERR_INVALID, "member %u: its stream is on device %u, its memory on %u", member,
         on->device(), memory->device());
  }
  for (const Member& other : joined_) {
    const auto its = other.stream.lock();
    if (its == on) fail(CKPT_ERR_INVALID, "the stream has joined as another member");
    if (its) let_devices_meet(its->device(), on->device());
  }
  self.joined = true;
  self.stream = on;
  self.memory = std::static_pointer_cast<CudaMemory>(std::move(memory));
}

// Members that disagree would copy different bytes, or wait for each other for ever.
std::shared_ptr<CudaGroup::Round> CudaGroup::round_locked(uint64_t number, uint32_t root,
                                                          uint64_t offset, uint64_t bytes) {
  std::shared_ptr<Round>& round = rounds_[number];
  if (round == nullptr) {
    round = std::make_shared<Round>();
    round->number = number;
    round->root = root;
    round->offset = offset;
    round->bytes = bytes;
  } else if (round->root != root || round->offset != offset || round->bytes != bytes) {
    fail(CKPT_ERR_INVALID, "the members call different broadcasts: root %u and %u", round->root,
         root);
  }
  return round;
}

void CudaGroup::broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) {
  Member& self = joined_[member];
  std::lock_guard calling(self.calling);
  std::shared_ptr<CudaStream> stream;
  std::shared_ptr<CudaMemory> memory;
  std::shared_ptr<Round> round;
  {
    std::lock_guard lock(mutex_);
    require_not_aborted_locked();
    if (!self.joined) fail(CKPT_ERR_STATE, "member %u has not joined", member);
    stream = self.stream.lock();
    memory = self.memory.lock();
    if (stream == nullptr || memory == nullptr) {
      fail(CKPT_ERR_STATE, "the stream or memory of member %u was freed", member);
    }
    require_range("broadcast", offset, bytes, memory->bytes());
    round = round_locked(self.next_round, root, offset, bytes);
  }
  if (member == root) {
    add_root(*stream, std::move(round), std::move(memory));
  } else {
    add_member(*stream, std::move(round), std::move(memory));
  }
  self.next_round++;
}

void CudaGroup::add_root(CudaStream& stream, std::shared_ptr<Round> round,
                         std::shared_ptr<CudaMemory> memory) {
  auto ready = std::make_shared<Mark>(stream.device());
  const auto group = shared_from_this();
  std::shared_ptr<Gate> all_taken(round, &round->all_taken);
  stream.add({{CudaStream::After::error_too,
               [group, round, ready = std::move(ready), memory](Turn& turn) {
                 round->ready = ready;
                 group->give(turn, *round, memory);
               }},
              {CudaStream::After::error_too,
               [group, round](Turn& turn) { group->collect(turn, *round); },
               std::move(all_taken)}});
}

void CudaGroup::add_member(CudaStream& stream, std::shared_ptr<Round> round,
                           std::shared_ptr<CudaMemory> memory) {
  std::shared_ptr<Gate> posted(round, &round->posted);
  stream.add({{CudaStream::After::error_too,
               [group = shared_from_this(), round, memory](Turn& turn) {
                 group->take(turn, *round, memory);
               },
               std::move(posted)}});
}

void CudaGroup::count_locked(Round& round, uint32_t taken, Wakes& wakes) {
  round.taken += taken;
  if (round.taken == members() - 1) round.all_taken.open(wakes);
}

void CudaGroup::give(Turn& turn, Round& round, std::shared_ptr<CudaMemory> memory) {
  std::lock_guard lock(mutex_);
  require_not_aborted_locked();
  Wakes nobody;
  round.ready->record(turn.stream, turn.error, nobody);
  round.failure = round.ready->error();
  if (!round.failure) round.source = std::move(memory);
  round.posted.open(turn.wakes);
  count_locked(round, 0, turn.wakes);
  if (round.failure && !turn.error) throw Error(*round.failure);
}

// Behind an abort some copies may have been enqueued: they read the root's memory.
void CudaGroup::collect(Turn& turn, Round& round) {
  std::vector<std::shared_ptr<Mark>> copies;
  bool all;
  {
    std::lock_guard lock(mutex_);
    rounds_.erase(round.number);
    copies = std::move(round.copies);
    all = round.taken == members() - 1;
    round.source = nullptr;
  }
  for (const auto& copied : copies) copied->make_wait(turn.stream);
  if (!all) fail(CKPT_ERR_ABORTED, "the group was aborted");
}

void CudaGroup::take(Turn& turn, Round& round, std::shared_ptr<CudaMemory> memory) {
  {
    std::lock_guard lock(mutex_);
    require_not_aborted_locked();
  }
  std::shared_ptr<Mark> copied;
  std::shared_ptr<const Error> error = round.failure;
  // A member whose own stream has failed takes nothing, but the others go on.
  if (!error && !turn.error) {
    try {
      copied = copy(turn, round, std::move(memory));
    } catch (const Error& failed) {
      error = std::make_shared<const Error>(failed);
    }
  }
  {
    std::lock_guard lock(mutex_);
    if (copied) round.copies.push_back(std::move(copied));
    count_locked(round, 1, turn.wakes);
    // The root may not have waited for this copy, and write what it reads.
    if (!error) require_not_aborted_locked();
  }
  if (error) throw Error(*error);
}

std::shared_ptr<Mark> CudaGroup::copy(Turn& turn, Round& round,
                                      std::shared_ptr<CudaMemory> memory) {
  const auto source = round.source;
  const auto copied = std::make_shared<Mark>(memory->device());
  const int to = static_cast<int>(memory->device());
  const int from = static_cast<int>(source->device());
  round.ready->make_wait(turn.stream);
  turn.use({memory, source}, [&] {
    const auto target = memory->at(round.offset);
    const auto bytes = source->at(round.offset);
    check_cuda(to == from ? cudaMemcpyAsync(target, bytes, round.bytes, cudaMemcpyDeviceToDevice,
                                            turn.stream)
                          : cudaMemcpyPeerAsync(target, to, bytes, from, round.bytes, turn.stream),
               "the copy of a broadcast");
    Wakes nobody;
    copied->record(turn.stream, nullptr, nobody);
    if (copied->error()) throw Error(*copied->error());
  });
  return copied;
}

void CudaGroup::abort() {
  Wakes wakes;
  {
    std::lock_guard lock(mutex_);
    aborted_ = true;
    for (const auto& [number, round] : rounds_) {
      round->posted.open(wakes);
      round->all_taken.open(wakes);
    }
    rounds_.clear();
  }
  CudaStream::wake(std::move(wakes));
}

}  // namespace ckpt
