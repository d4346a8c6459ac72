// Broadcast among the ranks of one process.
#include <atomic>
#include <cstdio>

#include "test.h"

using namespace test;

namespace {

constexpr uint64_t kRingBytes = 4 << 20;

struct Ranks {
  explicit Ranks(uint32_t count) : members(count) {
    OK(ckpt_group_create(count, &group));
    for (uint32_t i = 0; i < count; i++) {
      streams.push_back(new_stream(i));
      memories.push_back(new_memory(kRingBytes, i));
      events.push_back(new_event(i));
      OK(ckpt_group_join(group, i, streams[i], memories[i]));
    }
  }
  ~Ranks() {
    ckpt_group_destroy(group);
    for (uint32_t i = 0; i < members; i++) {
      ckpt_stream_destroy(streams[i]);
      ckpt_memory_free(memories[i]);
      ckpt_event_destroy(events[i]);
    }
  }
  uint32_t members;
  uint32_t group = 0;
  std::vector<uint32_t> streams, memories, events;
};

}  // namespace

TEST("a broadcast brings every member the root's bytes, in the order of the calls") {
  for (uint32_t count : {1u, 2u, 4u}) {
    Ranks ranks(count);
    std::vector<std::vector<uint8_t>> contents;
    std::vector<uint32_t> buffers;
    for (uint32_t i = 0; i < count; i++) {
      contents.push_back(random_bytes(1 << 20, i));
      buffers.push_back(buffer_with(contents[i]));
    }
    // Every rank is the root of some rounds; a round uses the place of one before it.
    for (uint32_t round = 0; round < 12; round++) {
      const uint32_t root = round % count;
      const uint64_t offset = (round % 3) << 20;
      OK(ckpt_copy_h2d(ranks.streams[root], ranks.memories[root], offset, buffers[root], 0,
                       1 << 20));
      for (uint32_t member = 0; member < count; member++) {
        OK(ckpt_group_broadcast(ranks.group, member, root, offset, 1 << 20));
      }
    }
    for (uint32_t member = 0; member < count; member++)
      OK(ckpt_event_record(ranks.events[member], ranks.streams[member]));
    for (uint32_t member = 0; member < count; member++) {
      OK(ckpt_event_wait(ranks.events[member], 0, 10000));
      for (uint32_t round = 9; round < 12; round++) {
        CHECK_EQ(memory_sha256(ranks.memories[member], (round % 3) << 20, 1 << 20),
                 sha256_of(contents[round % count]));
      }
    }
    for (uint32_t buffer : buffers) OK(ckpt_buffer_free(buffer));
  }
}

TEST("the root is done only when every member has taken the bytes") {
  Ranks ranks(3);
  for (uint32_t member : {0u, 1u}) OK(ckpt_group_broadcast(ranks.group, member, 0, 0, kRingBytes));
  for (uint32_t member : {0u, 1u})
    OK(ckpt_event_record(ranks.events[member], ranks.streams[member]));
  OK(ckpt_event_wait(ranks.events[1], 0, 10000));
  GIVES(CKPT_ERR_TIMEOUT, ckpt_event_wait(ranks.events[0], 0, 20));
  OK(ckpt_group_broadcast(ranks.group, 2, 0, 0, kRingBytes));
  OK(ckpt_event_wait(ranks.events[0], 0, 10000));
}

TEST("what the root does next waits for the members' copies, however busy they are") {
  Ranks ranks(3);
  const std::vector<uint8_t> sent = random_bytes(kRingBytes, 1), next = random_bytes(kRingBytes, 2);
  const uint32_t buffer = buffer_with(sent), after = buffer_with(next);
  for (uint32_t member : {1u, 2u}) {
    for (int i = 0; i < 40; i++)
      OK(ckpt_copy_h2d(ranks.streams[member], ranks.memories[member], 0, after, 0, kRingBytes));
  }
  OK(ckpt_copy_h2d(ranks.streams[0], ranks.memories[0], 0, buffer, 0, kRingBytes));
  for (uint32_t member : {0u, 1u, 2u})
    OK(ckpt_group_broadcast(ranks.group, member, 0, 0, kRingBytes));
  OK(ckpt_copy_h2d(ranks.streams[0], ranks.memories[0], 0, after, 0, kRingBytes));
  for (uint32_t stream : ranks.streams) OK(ckpt_stream_sync(stream, 0, 10000));
  for (uint32_t member : {0u, 1u, 2u}) {
    CHECK_EQ(memory_sha256(ranks.memories[member], 0, kRingBytes),
             sha256_of(member == 0 ? next : sent));
  }
  for (uint32_t used : {buffer, after}) OK(ckpt_buffer_free(used));
}

TEST("more members than a GPU has queues, and the root always last") {
  constexpr uint32_t count = 24;
  Ranks ranks(count);
  const std::vector<uint8_t> content = random_bytes(1 << 20, 1);
  const uint32_t buffer = buffer_with(content);
  OK(ckpt_copy_h2d(ranks.streams[0], ranks.memories[0], 0, buffer, 0, 1 << 20));
  for (uint32_t root = 0; root < count; root++) {
    for (uint32_t i = 1; i <= count; i++)
      OK(ckpt_group_broadcast(ranks.group, (root + i) % count, root, 0, 1 << 20));
  }
  for (uint32_t stream : ranks.streams) OK(ckpt_stream_sync(stream, 0, 10000));
  for (uint32_t memory : ranks.memories) {
    CHECK_EQ(memory_sha256(memory, 0, 1 << 20), sha256_of(content));
  }
  OK(ckpt_buffer_free(buffer));
}

TEST("members call from threads of their own, each with its copies and events between") {
  constexpr uint32_t count = 4;
  constexpr uint32_t rounds = 150;
  Ranks ranks(count);
  const std::vector<uint8_t> content = random_bytes(rounds * 4096, 1);
  const uint32_t buffer = buffer_with(content);
  std::atomic<int> wrong{0};
  std::vector<Thread> threads;
  for (uint32_t member = 0; member < count; member++) {
    threads.emplace_back([&, member] {
      try {
        const uint32_t stream = ranks.streams[member], event = ranks.events[member];
        const uint32_t copies = new_stream(member), copied = new_event(member);
        for (uint32_t round = 0; round < rounds; round++) {
          const uint64_t offset = round * 4096;
          if (round % count == member) {
            OK(ckpt_copy_h2d(copies, ranks.memories[member], offset, buffer, offset, 4096));
            OK(ckpt_event_record(copied, copies));
            OK(ckpt_stream_wait_event(stream, copied));
          }
          OK(ckpt_group_broadcast(ranks.group, member, round % count, offset, 4096));
          OK(ckpt_event_record(event, stream));
          if (round % 16 == member) OK(ckpt_event_wait(event, 0, 10000));
        }
        OK(ckpt_stream_sync(stream, 0, 10000));
        CHECK_EQ(memory_sha256(ranks.memories[member], 0, content.size()), sha256_of(content));
        OK(ckpt_stream_destroy(copies));
        OK(ckpt_event_destroy(copied));
      } catch (const Failure& failure) {
        fprintf(stderr, "member %u: %s\n", member, failure.text.c_str());
        wrong++;
      }
    });
  }
  for (Thread& thread : threads) thread.join();
  CHECK_EQ(wrong, 0);
  OK(ckpt_buffer_free(buffer));
}

TEST("groups refuse wrong members, ranges, second joins and calls that differ") {
  uint32_t group = 0;
  GIVES(CKPT_ERR_INVALID, ckpt_group_create(0, &group));
  GIVES(CKPT_ERR_INVALID, ckpt_group_create(257, &group));
  OK(ckpt_group_create(2, &group));
  const uint32_t streams[2] = {new_stream(), new_stream()};
  const uint32_t memories[2] = {new_memory(8192), new_memory(8192)};
  GIVES(CKPT_ERR_INVALID, ckpt_group_join(group, 2, streams[0], memories[0]));
  GIVES(CKPT_ERR_STATE, ckpt_group_broadcast(group, 0, 0, 0, 10));
  OK(ckpt_group_join(group, 0, streams[0], memories[0]));
  GIVES(CKPT_ERR_STATE, ckpt_group_join(group, 0, streams[1], memories[1]));
  GIVES(CKPT_ERR_INVALID, ckpt_group_join(group, 1, streams[0], memories[1]));
  OK(ckpt_group_join(group, 1, streams[1], memories[1]));
  GIVES(CKPT_ERR_INVALID, ckpt_group_broadcast(group, 2, 0, 0, 10));
  GIVES(CKPT_ERR_INVALID, ckpt_group_broadcast(group, 0, 2, 0, 10));
  GIVES(CKPT_ERR_INVALID, ckpt_group_broadcast(group, 0, 0, 0, 0));
  GIVES(CKPT_ERR_INVALID, ckpt_group_broadcast(group, 0, 0, 8192, 1));
  OK(ckpt_group_broadcast(group, 0, 0, 0, 10));
  GIVES(CKPT_ERR_INVALID, ckpt_group_broadcast(group, 1, 1, 0, 10));
  GIVES(CKPT_ERR_INVALID, ckpt_group_broadcast(group, 1, 0, 0, 11));
  OK(ckpt_group_broadcast(group, 1, 0, 0, 10));
  for (uint32_t stream : streams) OK(ckpt_stream_sync(stream, 0, 10000));
  OK(ckpt_memory_free(memories[0]));
  GIVES(CKPT_ERR_STATE, ckpt_group_broadcast(group, 0, 0, 0, 10));
  OK(ckpt_stream_destroy(streams[1]));
  GIVES(CKPT_ERR_STATE, ckpt_group_broadcast(group, 1, 0, 0, 10));
  OK(ckpt_group_destroy(group));
  OK(ckpt_stream_destroy(streams[0]));
  OK(ckpt_memory_free(memories[1]));
}

TEST("an abort ends every pending broadcast, also when a member never came") {
  for (uint32_t absent : {0u, 2u}) {  // the root, a member
    Ranks ranks(3);
    std::vector<uint32_t> present;
    for (uint32_t member = 0; member < 3; member++) {
      if (member != absent) present.push_back(member);
    }
    for (int round = 0; round < 3; round++) {
      for (uint32_t member : present)
        OK(ckpt_group_broadcast(ranks.group, member, 0, 0, kRingBytes));
    }
    std::atomic<int> aborted{0};
    std::vector<Thread> waiters;
    for (uint32_t member : present) {
      OK(ckpt_event_record(ranks.events[member], ranks.streams[member]));
      waiters.emplace_back([&, member] {
        aborted += ckpt_event_wait(ranks.events[member], 0, 30000) == CKPT_ERR_ABORTED;
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    OK(ckpt_group_abort(ranks.group));
    for (Thread& waiter : waiters) waiter.join();
    CHECK_EQ(aborted, 2);
    GIVES(CKPT_ERR_ABORTED, ckpt_group_broadcast(ranks.group, absent, 0, 0, kRingBytes));
    GIVES(CKPT_ERR_ABORTED, ckpt_group_join(ranks.group, 0, ranks.streams[0], ranks.memories[0]));
    OK(ckpt_group_abort(ranks.group));
    for (uint32_t member : present)
      GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(ranks.streams[member], 0, 10000));
    // The streams are good for another group.
    uint32_t next = 0;
    OK(ckpt_group_create(3, &next));
    for (uint32_t member = 0; member < 3; member++) {
      OK(ckpt_group_join(next, member, ranks.streams[member], ranks.memories[member]));
      OK(ckpt_group_broadcast(next, member, 1, 0, 4096));
    }
    for (uint32_t stream : ranks.streams) OK(ckpt_stream_sync(stream, 0, 10000));
    OK(ckpt_group_destroy(next));
  }
}

TEST("an abort ends a broadcast that is being copied") {
  host_library_only();  // a copy that is throttled to one second
  CHECK_EQ(run_child({"abort-copy"}).exit_status, 0);
}

TEST("destroying a group ends what is pending, and an abort in the middle of copies is safe") {
  for (int round = 0; round < 10; round++) {
    Ranks ranks(4);
    for (int i = 0; i < 20; i++) {
      for (uint32_t member = 0; member < 4; member++) {
        OK(ckpt_group_broadcast(ranks.group, member, static_cast<uint32_t>(i % 4), 0, kRingBytes));
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(round));
    if (round % 2 == 0) OK(ckpt_group_abort(ranks.group));
  }
}

TEST("a root whose stream has failed fails the broadcast on every member; a member only its own") {
  TempFile source(random_bytes(4096, 1));
  const uint32_t file = open_file(source.path());
  const uint32_t mapped = mapped_buffer(file);
  CHECK_EQ(run_child({"write", source.path()}).exit_status, 0);
  Ranks ranks(3);
  for (uint32_t failing : {1u, 0u}) {
    OK(ckpt_copy_h2d(ranks.streams[failing], ranks.memories[failing], 0, mapped, 0, 4096));
    for (uint32_t member = 0; member < 3; member++)
      OK(ckpt_group_broadcast(ranks.group, member, 0, 0, 4096));
    for (uint32_t member = 0; member < 3; member++) {
      const bool fails = failing == 0 || member == failing;
      GIVES(fails ? CKPT_ERR_CHANGED : CKPT_OK, ckpt_stream_sync(ranks.streams[member], 0, 10000));
    }
  }
  OK(ckpt_buffer_free(mapped));
  OK(ckpt_file_close(file));
}
