#include "group.h"

#include "copy.h"

namespace ckpt {

void HostGroup::fail_aborted() { fail(CKPT_ERR_ABORTED, "the group was aborted"); }

void HostGroup::join(uint32_t member, std::shared_ptr<Stream> stream,
                     std::shared_ptr<Memory> memory) {
  const auto on = std::static_pointer_cast<HostStream>(std::move(stream));
  std::lock_guard lock(mutex_);
  if (aborted_) fail_aborted();
  if (joined_[member].joined) fail(CKPT_ERR_STATE, "member %u has joined", member);
  for (const Member& other : joined_) {
    // Its two broadcasts would wait for each other.
    if (other.stream.lock() == on)
      fail(CKPT_ERR_INVALID, "the stream has joined as another member");
  }
  joined_[member] = {true, on, std::static_pointer_cast<HostMemory>(std::move(memory)), 0};
}

std::shared_ptr<HostGroup::Round> HostGroup::round_locked(Member& member, uint32_t root,
                                                          uint64_t offset, uint64_t bytes) {
  std::shared_ptr<Round>& round = rounds_[member.next_round];
  if (round == nullptr) {
    round = std::make_shared<Round>();
    round->root = root;
    round->offset = offset;
    round->bytes = bytes;
  } else if (round->root != root || round->offset != offset || round->bytes != bytes) {
    fail(CKPT_ERR_INVALID, "the members call different broadcasts: root %u and %u", round->root,
         root);
  }
  return round;
}

void HostGroup::broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (aborted_) fail_aborted();
  Member& self = joined_[member];
  if (!self.joined) fail(CKPT_ERR_STATE, "member %u has not joined", member);
  auto stream = self.stream.lock();
  auto memory = self.memory.lock();
  if (stream == nullptr || memory == nullptr) {
    fail(CKPT_ERR_STATE, "the stream or memory of member %u was freed", member);
  }
  require_range("broadcast", offset, bytes, memory->bytes());
  enqueue_locked(member, std::move(stream), std::move(memory), root, offset, bytes, {});
}

void HostGroup::broadcast_on(uint32_t member, std::shared_ptr<HostStream> stream,
                             std::shared_ptr<HostMemory> memory, uint32_t root, uint64_t offset,
                             uint64_t bytes, RootWork work) {
  std::lock_guard lock(mutex_);
  if (aborted_) fail_aborted();
  enqueue_locked(member, std::move(stream), std::move(memory), root, offset, bytes,
                 std::move(work));
}

void HostGroup::enqueue_locked(uint32_t member, std::shared_ptr<HostStream> stream,
                               std::shared_ptr<HostMemory> memory, uint32_t root, uint64_t offset,
                               uint64_t bytes, RootWork work) {
  Member& self = joined_[member];
  std::shared_ptr<Round> round = round_locked(self, root, offset, bytes);
  // The stream outlives its work, so that the work may point to it.
  HostStream* on = stream.get();
  stream->enqueue(HostStream::After::error_too,
                  [group = shared_from_this(), round, memory, on, is_root = member == root,
                   work = std::move(work)] {
                    if (is_root) {
                      group->lead(*on, *round, memory, work);
                    } else {
                      group->take(*on, *round, *memory);
                    }
                  });
  if (++round->calls == members()) rounds_.erase(self.next_round);
  self.next_round++;
}

void HostGroup::lead(HostStream& stream, Round& round, std::shared_ptr<HostMemory> memory,
                     const RootWork& work) {
  std::optional<Error> failure = stream.error();
  const auto attempt = [&](const auto& part) {
    try {
      part();
    } catch (const Error& error) {
      if (!failure) failure = error;
    }
  };
  if (work.before) attempt([&] { work.before(stream); });
  attempt([&] { give(failure, round, std::move(memory)); });
  if (work.after) attempt([&] { work.after(stream); });
  if (failure) throw Error(*failure);
}

void HostGroup::give(std::optional<Error> failure, Round& round,
                     std::shared_ptr<HostMemory> memory) {
  std::unique_lock lock(mutex_);
  round.ready = true;
  round.failure = std::move(failure);
  if (!round.failure) round.source = std::move(memory);
  changed_.notify_all();
  if (round.failure) return;
  changed_.wait(lock, [&] { return aborted_ || round.taken == members() - 1; });
  round.source = nullptr;
  if (round.taken < members() - 1) fail_aborted();
}

void HostGroup::take(HostStream& stream, Round& round, HostMemory& memory) {
  std::shared_ptr<HostMemory> source;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return aborted_ || round.ready; });
    if (aborted_) fail_aborted();
    if (round.failure) throw Error(*round.failure);
    source = round.source;
  }
  // A member whose own stream has failed takes nothing, but the others go on.
  if (!stream.error()) {
    stream.in_chunks(round.bytes, [&](uint64_t offset, uint64_t count) {
      if (aborted_) fail_aborted();
      copy_bytes(memory.address() + round.offset + offset,
                 source->address() + round.offset + offset, count);
    });
  }
  std::lock_guard lock(mutex_);
  round.taken++;
  changed_.notify_all();
}

void HostGroup::abort() {
  std::lock_guard lock(mutex_);
  aborted_ = true;
  rounds_.clear();
  changed_.notify_all();
}

}  // namespace ckpt
