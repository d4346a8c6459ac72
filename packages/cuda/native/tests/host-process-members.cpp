#include "process-members.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "common/sha256.h"
#include "host/memory.h"

namespace test {
namespace {

constexpr uint32_t kJoinMs = 20000;

struct Step {
  uint64_t offset, bytes;
};

// Apart from each other: what lies between must stay as it was.
std::vector<Step> steps() {
  std::vector<Step> all;
  uint64_t at = 3;
  for (uint64_t bytes : {1ull, 7ull, 64ull, 4096ull, 4097ull, 8191ull, 65539ull, 300001ull,
                         1048577ull, 1ull, 10485773ull, 2097152ull, 5ull}) {
    all.push_back({at, bytes});
    at += bytes + 1 + at % 61;
  }
  return all;
}

}  // namespace

ProcessId128 ProcessId128::parse(const std::string& text) {
  ProcessId128 id;
  CHECK_EQ(text.size(), 2 * sizeof id.bytes);
  for (size_t i = 0; i < sizeof id.bytes; i++)
    id.bytes[i] = static_cast<uint8_t>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
  return id;
}

ProcessId128 ProcessId128::make(uint32_t processes) {
  ProcessId128 id;
  const int32_t status = ckpt_communicator_id(1, processes, id.bytes);
  if (status == CKPT_ERR_UNSUPPORTED) {
    static std::string why;
    why = last_error();
    throw Skipped{why.c_str()};
  }
  OK(status);
  return id;
}

int32_t join_processes(const ProcessId128& id, uint32_t device, uint32_t members, uint32_t member,
                       uint32_t signal, uint32_t limit_ms, uint32_t& communicator) {
  return ckpt_communicator_create(id.bytes, device, members, member, 1, signal, limit_ms,
                                  &communicator);
}

ProcessMembers::ProcessMembers(const ProcessId128& id, uint32_t members,
                               std::vector<uint32_t> mine, uint64_t memory_bytes)
    : all(mine.size()), members_(members), memory_bytes_(memory_bytes) {
  std::vector<std::string> failures(mine.size());
  {
    std::vector<Thread> threads;
    for (uint32_t i = 0; i < mine.size(); i++) {
      threads.emplace_back([&, i] {
        try {
          all[i] = {mine[i], 0, new_stream(i), new_memory(memory_bytes, i)};
          OK(join_processes(id, i, members, mine[i], 0, kJoinMs, all[i].communicator));
        } catch (const Failure& failure) {
          failures[i] = failure.text;
        }
      });
    }
  }
  for (const std::string& failure : failures)
    if (!failure.empty()) throw Failure{failure};
}

void ProcessMembers::destroy() {
  for (One& one : all) {
    OK(ckpt_communicator_destroy(one.communicator));
    OK(ckpt_stream_destroy(one.stream));
    OK(ckpt_memory_free(one.memory));
  }
  all.clear();
}

ProcessMembers::~ProcessMembers() {
  for (const One& one : all) ckpt_communicator_abort(one.communicator);
  for (const One& one : all) {
    ckpt_communicator_destroy(one.communicator);
    ckpt_stream_destroy(one.stream);
    ckpt_memory_free(one.memory);
  }
}

void ProcessMembers::play() {
  std::vector<std::string> failures(all.size());
  {
    std::vector<Thread> threads;
    for (uint32_t i = 0; i < all.size(); i++) {
      threads.emplace_back([&, i] {
        try {
          play_one(all[i]);
        } catch (const Failure& failure) {
          failures[i] = failure.text;
        }
      });
    }
  }
  for (const std::string& failure : failures)
    if (!failure.empty()) throw Failure{failure};
}

void ProcessMembers::play_one(const One& self) {
  std::vector<uint8_t> expected(kPlayBytes, 7);
  OK(ckpt_memory_fill(self.memory, 0, kPlayBytes, 7));
  std::vector<uint32_t> buffers;
  uint32_t turn = 0;
  for (uint32_t repeat = 0; repeat < 2; repeat++) {
    for (const auto& [offset, bytes] : steps()) {
      const uint32_t root = turn % members_;
      const std::vector<uint8_t> content = random_bytes(bytes, turn++);
      std::copy(content.begin(), content.end(), expected.begin() + static_cast<int64_t>(offset));
      if (root == self.member) {
        buffers.push_back(buffer_with(content));
        OK(ckpt_copy_h2d(self.stream, self.memory, offset, buffers.back(), 0, bytes));
      }
      OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, root, offset,
                                     bytes));
    }
  }
  OK(ckpt_stream_sync(self.stream, 0, 60000));
  CHECK_EQ(memory_sha256(self.memory, 0, kPlayBytes), sha256_of(expected));
  for (const uint32_t buffer : buffers) OK(ckpt_buffer_free(buffer));
}

namespace {

void call(const ProcessMembers::One& self, uint32_t root, uint64_t bytes) {
  OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, root, 0, bytes));
}

// What the other one's failed stream means to this one, see the test.
void hear(const ProcessMembers::One& self) {
  call(self, 0, 5 << 20);
  GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(self.stream, 0, 20000));
  CHECK(last_error().find("another process") != std::string::npos);
  call(self, 1, 5 << 20);
  OK(ckpt_stream_sync(self.stream, 0, 20000));
  call(self, 0, 1000);
  OK(ckpt_stream_sync(self.stream, 0, 20000));
}

void die(const ProcessMembers::One& self) {
  call(self, 0, 1000);
  OK(ckpt_stream_sync(self.stream, 0, 20000));
  raise(SIGKILL);
}

void die_amid(const ProcessMembers::One& self) {
  const Thread killer([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    raise(SIGKILL);
  });
  for (uint32_t turn = 0;; turn++) {
    call(self, turn % 2, kPlayBytes);
    OK(ckpt_stream_sync(self.stream, 0, 20000));
  }
}

}  // namespace

// communicate HOW MEMBERS MINE,... ID...: for each id a communicator, on which this process does
// what HOW says; "come": nothing.
int communicate_child(const std::vector<std::string>& arguments) {
  const ckpt_config config{2, 0, kHostDeviceBytes, 0, 0};
  OK(ckpt_init(&config));
  const std::string& how = arguments[1];
  const auto members = static_cast<uint32_t>(std::stoul(arguments[2]));
  std::vector<uint32_t> mine;
  std::istringstream list(arguments[3]);
  for (std::string one; std::getline(list, one, ',');)
    mine.push_back(static_cast<uint32_t>(std::stoul(one)));
  for (size_t i = 4; i < arguments.size(); i++) {
    ProcessMembers own(ProcessId128::parse(arguments[i]), members, mine, kPlayBytes);
    if (how == "play") own.play();
    if (how == "hear") hear(own.all[0]);
    if (how == "die") die(own.all[0]);
    if (how == "die-amid") die_amid(own.all[0]);
    own.destroy();
  }
  printf("good");
  return 0;
}

}  // namespace test
