// Broadcast among ranks that meet by an id. With the CUDA library all of them may share one GPU.
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "test.h"

using namespace test;

namespace {

constexpr uint64_t kRingBytes = 4 << 20;
constexpr uint32_t kLimitMs = 30000;

struct Id {
  Id() {
    setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
    if (ckpt_communicator_id(1, 1, bytes) == CKPT_ERR_UNSUPPORTED && !kHostLibrary)
      throw Skipped{"there is no NCCL"};
  }
  uint8_t bytes[CKPT_COMMUNICATOR_ID_BYTES] = {};
};

uint32_t sharers_of(uint32_t count, uint32_t member) {
  uint32_t sharers = 0;
  for (uint32_t other = 0; other < count; other++)
    sharers += device_at(other) == device_at(member);
  return sharers;
}

int32_t create(const Id& id, uint32_t count, uint32_t member, uint32_t signal, uint32_t limit_ms,
               uint32_t& communicator) {
  return ckpt_communicator_create(id.bytes, device_at(member), count, member,
                                  sharers_of(count, member), signal, limit_ms, &communicator);
}

struct Member {
  uint32_t communicator = 0, stream = 0, memory = 0;
};

// Calls of all members at once, each on a thread of its own; what they throw is thrown.
void each(uint32_t count, const std::function<void(uint32_t)>& call) {
  std::vector<std::string> failures(count);
  {
    std::vector<Thread> threads;
    for (uint32_t member = 0; member < count; member++) {
      threads.emplace_back([&, member] {
        try {
          call(member);
        } catch (const Failure& failure) {
          failures[member] = failure.text;
        }
      });
    }
  }
  for (const std::string& failure : failures) {
    if (!failure.empty()) throw Failure{failure};
  }
}

struct Members {
  explicit Members(uint32_t count) : all(count) {
    const Id id;
    std::atomic<bool> unsupported{false};
    for (uint32_t i = 0; i < count; i++) {
      all[i].stream = new_stream(i);
      all[i].memory = new_memory(kRingBytes, i);
    }
    each(count, [&](uint32_t i) {
      const int32_t status = create(id, count, i, 0, kLimitMs, all[i].communicator);
      if (status == CKPT_ERR_UNSUPPORTED && !kHostLibrary) {
        unsupported = true;
      } else {
        OK(status);
      }
    });
    if (unsupported) throw Skipped{"this NCCL has no communicators of ranks that share a GPU"};
  }
  ~Members() {
    // destroying may wait for work that another member has to end
    for (const Member& one : all) ckpt_communicator_abort(one.communicator);
    for (const Member& one : all) {
      ckpt_communicator_destroy(one.communicator);
      ckpt_stream_destroy(one.stream);
      ckpt_memory_free(one.memory);
    }
  }
  uint32_t count() const { return static_cast<uint32_t>(all.size()); }
  std::vector<Member> all;
};

}  // namespace

TEST("a communicator brings every member the root's bytes, on any stream and memory it is given") {
  for (uint32_t count : {1u, 2u, 4u, 8u}) {
    Members members(count);
    const std::vector<uint8_t> content = random_bytes(1 << 20, count);
    const uint32_t buffer = buffer_with(content);
    for (uint32_t turn = 0; turn < 2; turn++) {
      each(count, [&](uint32_t i) {
        const Member& self = members.all[i];
        const uint32_t stream = turn == 0 ? self.stream : new_stream(i);
        const uint32_t memory = turn == 0 ? self.memory : new_memory(kRingBytes, i);
        for (uint32_t root = 0; root < count; root++) {
          const uint64_t offset = root % 4 << 20;
          if (root == i) OK(ckpt_copy_h2d(stream, memory, offset, buffer, 0, 1 << 20));
          OK(ckpt_communicator_broadcast(self.communicator, stream, memory, root, offset, 1 << 20));
        }
        OK(ckpt_stream_sync(stream, 0, kLimitMs));
        for (uint32_t root = 0; root < count; root++)
          CHECK_EQ(memory_sha256(memory, root % 4 << 20, 1 << 20), sha256_of(content));
        if (turn == 0) return;
        OK(ckpt_stream_destroy(stream));
        OK(ckpt_memory_free(memory));
      });
    }
    OK(ckpt_buffer_free(buffer));
  }
}

TEST("many small broadcasts from turning roots arrive in order") {
  constexpr uint32_t count = 4, rounds = 200;
  Members members(count);
  const std::vector<uint8_t> content = random_bytes(rounds * 4096, 1);
  const uint32_t buffer = buffer_with(content);
  each(count, [&](uint32_t i) {
    const Member& self = members.all[i];
    for (uint32_t round = 0; round < rounds; round++) {
      const uint64_t offset = round * 4096;
      if (round % count == i)
        OK(ckpt_copy_h2d(self.stream, self.memory, offset, buffer, offset, 4096));
      OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, round % count,
                                     offset, 4096));
    }
    OK(ckpt_stream_sync(self.stream, 0, kLimitMs));
    CHECK_EQ(memory_sha256(self.memory, 0, content.size()), sha256_of(content));
  });
  OK(ckpt_buffer_free(buffer));
}

TEST("a communicator whose other members do not come ends at its limit, and by a signal") {
  const Id id;
  const uint32_t signal = new_signal();
  uint32_t communicator = 0;
  const auto start = Clock::now();
  const int32_t status = create(id, 2, 0, signal, 300, communicator);
  if (status == CKPT_ERR_UNSUPPORTED && !kHostLibrary)
    throw Skipped{"this NCCL has no communicators of ranks that share a GPU"};
  CHECK_EQ(status, CKPT_ERR_TIMEOUT);
  CHECK(seconds_since(start) < 5);
  std::atomic<int32_t> ended{CKPT_OK};
  {
    const Id next;
    Thread waiter([&] { ended = create(next, 2, 0, signal, kLimitMs, communicator); });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    OK(ckpt_signal_raise(signal, CKPT_SIGNAL_ABORT));
  }
  CHECK_EQ(ended, CKPT_ERR_ABORTED);
  CHECK_EQ(communicator, 0u);
  OK(ckpt_signal_destroy(signal));
}

TEST("an abort ends a broadcast that other members never call") {
  Members members(2);
  const Member& self = members.all[0];
  OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, 1, 0, 4096));
  const uint32_t event = new_event(0);
  OK(ckpt_event_record(event, self.stream));
  GIVES(CKPT_ERR_TIMEOUT, ckpt_event_wait(event, 0, 50));
  OK(ckpt_communicator_abort(self.communicator));
  const int32_t ended = ckpt_event_wait(event, 0, kLimitMs);
  CHECK(ended == CKPT_OK || ended == CKPT_ERR_ABORTED || ended == CKPT_ERR_DEVICE);
  GIVES(CKPT_ERR_ABORTED, ckpt_communicator_broadcast(self.communicator, self.stream, self.memory,
                                                      1, 0, 4096));
  OK(ckpt_communicator_abort(self.communicator));
  OK(ckpt_event_destroy(event));
}

TEST("memory can be freed while a broadcast waits for a member that calls later") {
  Members members(2);
  const uint32_t buffer = buffer_with(random_bytes(1 << 20, 1)), other = new_memory(1 << 20, 0);
  const auto call = [&](uint32_t member) {
    const auto& [communicator, stream, memory] = members.all[member];
    OK(ckpt_communicator_broadcast(communicator, stream, memory, 1, 0, kRingBytes));
  };
  call(0);
  std::atomic<int32_t> freed{CKPT_OK};
  Thread thread([&] {
    freed = ckpt_buffer_free(buffer);
    if (freed == CKPT_OK) freed = ckpt_memory_free(other);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  call(1);
  for (const Member& one : members.all) OK(ckpt_stream_sync(one.stream, 0, 10000));
  thread.join();
  CHECK_EQ(freed, CKPT_OK);
}

TEST("communicators refuse wrong members, roots, ranges and devices") {
  const Id id;
  uint32_t communicator = 0;
  const auto refused = [&](uint32_t members, uint32_t member, uint32_t sharers) {
    GIVES(CKPT_ERR_INVALID, ckpt_communicator_create(id.bytes, 0, members, member, sharers, 0, 1000,
                                                     &communicator));
  };
  refused(0, 0, 1);
  refused(2, 2, 1);
  refused(2, 0, 0);
  refused(2, 0, 3);
  GIVES(CKPT_ERR_INVALID,
        ckpt_communicator_create(id.bytes, 1000, 1, 0, 1, 0, 1000, &communicator));
  GIVES(CKPT_ERR_INVALID, ckpt_communicator_create(nullptr, 0, 1, 0, 1, 0, 1000, &communicator));
  GIVES(CKPT_ERR_INVALID, ckpt_communicator_id(1, 1, nullptr));
  uint8_t bytes[CKPT_COMMUNICATOR_ID_BYTES];
  GIVES(CKPT_ERR_INVALID, ckpt_communicator_id(1, 0, bytes));
  Members alone(1);
  const auto& [one, stream, memory] = alone.all[0];
  GIVES(CKPT_ERR_INVALID, ckpt_communicator_broadcast(one, stream, memory, 1, 0, 10));
  GIVES(CKPT_ERR_INVALID, ckpt_communicator_broadcast(one, stream, memory, 0, 0, 0));
  GIVES(CKPT_ERR_INVALID, ckpt_communicator_broadcast(one, stream, memory, 0, kRingBytes, 1));
  GIVES(CKPT_ERR_HANDLE, ckpt_communicator_broadcast(stream, stream, memory, 0, 0, 10));
  OK(ckpt_communicator_broadcast(one, stream, memory, 0, 0, 10));
  OK(ckpt_stream_sync(stream, 0, kLimitMs));
}

TEST("what the members of a communicator are told apart by") {
  host_library_only();
  const Id id;
  uint32_t first = 0, second = 0;
  const uint32_t signal = new_signal();
  Thread waiter([&] {
    // the member is here already while the call below waits
    while (create(id, 2, 0, signal, kLimitMs, first) == CKPT_ERR_STATE) {
    }
  });
  CHECK(eventually([&] {
    return ckpt_communicator_create(id.bytes, 0, 2, 0, 1, 0, 10, &second) == CKPT_ERR_STATE;
  }));
  GIVES(CKPT_ERR_INVALID, ckpt_communicator_create(id.bytes, 0, 3, 1, 1, 0, 10, &second));
  OK(create(id, 2, 1, 0, kLimitMs, second));
  waiter.join();
  const uint8_t foreign[CKPT_COMMUNICATOR_ID_BYTES] = {};
  uint32_t none = 0;
  GIVES(CKPT_ERR_UNSUPPORTED, ckpt_communicator_create(foreign, 0, 1, 0, 1, 0, 10, &none));
  for (uint32_t one : {first, second}) OK(ckpt_communicator_destroy(one));
  OK(ckpt_signal_destroy(signal));
}
