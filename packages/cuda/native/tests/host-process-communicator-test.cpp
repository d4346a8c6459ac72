// Communicators among processes: this one and others of this program.
#include <arpa/inet.h>
#include <dirent.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "environment.h"
#include "host/interfaces.h"
#include "host/rendezvous-frames.h"
#include "process-members.h"

using namespace test;

namespace {

// Another process, beside the test.
class Child {
 public:
  explicit Child(std::vector<std::string> arguments)
      : thread_([this, arguments = std::move(arguments)] {
          arguments_ = arguments;
          arguments_.insert(arguments_.begin(), "communicate");
          result_ = run_child(arguments_);
        }) {}
  ChildResult result() {
    thread_.join();
    return result_;
  }
  void good() {
    const ChildResult ended = result();
    CHECK_EQ(ended.exit_status, 0);
    CHECK_EQ(ended.output, "good");
  }

 private:
  std::vector<std::string> arguments_;
  ChildResult result_{};
  Thread thread_;
};

size_t entries_of(const char* folder) {
  size_t count = 0;
  DIR* opened = opendir(folder);
  CHECK(opened != nullptr);
  while (readdir(opened) != nullptr) count++;
  closedir(opened);
  return count;
}

size_t fds() { return entries_of("/proc/self/fd"); }
size_t threads() { return entries_of("/proc/self/task"); }

ckpt::RendezvousId opened(const ProcessId128& id) {
  ckpt::RendezvousId out;
  memcpy(&out, id.bytes, sizeof out);
  return out;
}

// What a stranger says to the listener; it must hang up.
void say(const ProcessId128& id, const void* bytes, size_t count) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(opened(id).port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
  CHECK(send(fd, bytes, count, MSG_NOSIGNAL) == static_cast<ssize_t>(count));
  char answer;
  CHECK(recv(fd, &answer, 1, 0) <= 0);
  close(fd);
}

void play_with_child(const char* transports, uint32_t members, const char* childs,
                     std::vector<uint32_t> mine) {
  const Environment setting("UCX_TLS", transports);
  const ProcessId128 id = ProcessId128::make(2);
  Child child({"play", std::to_string(members), childs, id.hex()});
  ProcessMembers own(id, members, std::move(mine), kPlayBytes);
  own.play();
  own.destroy();
  child.good();
}

// With the error of a group that was aborted.
void fail_stream(uint32_t stream, uint32_t memory) {
  uint32_t group = 0;
  OK(ckpt_memory_fill(memory, 0, 4096, 1));
  OK(ckpt_group_create(2, &group));
  OK(ckpt_group_join(group, 0, stream, memory));
  OK(ckpt_group_broadcast(group, 0, 1, 0, 1));  // nobody comes
  OK(ckpt_group_destroy(group));
}

// A communicator whose other process is gone after the first broadcast.
void lose_peer(const char* transports, bool aborted) {
  const Environment setting("UCX_TLS", transports);
  const ProcessId128 id = ProcessId128::make(2);
  Child child({"die", "2", "1", id.hex()});
  ProcessMembers own(id, 2, {0}, kPlayBytes);
  const auto& self = own.all[0];
  OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, 0, 0, 1000));
  OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, 1, 0, 1 << 20));
  CHECK_EQ(child.result().exit_status, -1);
  const auto start = Clock::now();
  if (aborted) {
    OK(ckpt_communicator_abort(self.communicator));
    CHECK(seconds_since(start) < 2);
  }
  const int32_t status = ckpt_stream_sync(self.stream, 0, 20000);
  CHECK(status == CKPT_ERR_IO || (aborted && status == CKPT_ERR_ABORTED));
  printf("      %s: a killed peer ended the wait after %.2f s\n", aborted ? "abort" : transports,
         seconds_since(start));
}

}  // namespace

TEST("processes: one member each, every byte, over every transport and over TCP") {
  play_with_child("", 2, "1", {0});
  play_with_child("posix,self", 2, "1", {0});
  play_with_child("posix,cma,self", 2, "1", {0});
  play_with_child("tcp", 2, "1", {0});
}

TEST("processes: two members each, neighbours or by turns") {
  play_with_child("", 4, "2,3", {0, 1});
  play_with_child("", 4, "0,2", {1, 3});
  play_with_child("tcp", 4, "1,3", {0, 2});
}

TEST("processes: three of them") {
  const ProcessId128 id = ProcessId128::make(3);
  Child first({"play", "4", "1", id.hex()}), second({"play", "4", "3", id.hex()});
  ProcessMembers own(id, 4, {0, 2}, kPlayBytes);
  own.play();
  own.destroy();
  first.good();
  second.good();
}

TEST("processes: all members may be in one all the same") {
  ProcessMembers own(ProcessId128::make(2), 2, {0, 1}, kPlayBytes);
  own.play();
  own.destroy();
}

TEST("processes: a root's failed stream fails the others' broadcasts, a receiver's only its own") {
  for (const char* transports : {"", "tcp"}) {
    const Environment setting("UCX_TLS", transports);
    const ProcessId128 id = ProcessId128::make(2);
    Child child({"hear", "2", "1", id.hex()});
    ProcessMembers own(id, 2, {0}, kPlayBytes);
    const auto& self = own.all[0];
    fail_stream(self.stream, self.memory);
    for (uint32_t root : {0u, 1u}) {
      OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, root, 0,
                                     5 << 20));
    }
    GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(self.stream, 0, 20000));
    CHECK_EQ(memory_sha256(self.memory, 0, 4096), sha256_of(std::vector<uint8_t>(4096, 1)));
    OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, 0, 0, 1000));
    OK(ckpt_stream_sync(self.stream, 0, 20000));
    own.destroy();
    child.good();
  }
}

TEST("processes: one that is killed amid broadcasts ends them") {
  for (const char* transports : {"", "posix,self", "posix,cma,self", "tcp"}) {
    const Environment setting("UCX_TLS", transports);
    const ProcessId128 id = ProcessId128::make(2);
    Child child({"die-amid", "2", "1", id.hex()});
    ProcessMembers own(id, 2, {0}, kPlayBytes);
    const auto& self = own.all[0];
    int32_t status = CKPT_OK;
    const auto start = Clock::now();
    for (uint32_t turn = 0; status == CKPT_OK; turn++) {
      status = ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, turn % 2, 0,
                                           kPlayBytes);
      if (status == CKPT_OK) status = ckpt_stream_sync(self.stream, 0, 20000);
    }
    printf("      \"%s\": ended after %.2f s: %s\n", transports, seconds_since(start),
           last_error().c_str());
    CHECK_EQ(status, CKPT_ERR_IO);
    CHECK_EQ(child.result().exit_status, -1);
  }
}

TEST("processes: members with a wrong secret and strangers are turned away, the others meet") {
  const ProcessId128 id = ProcessId128::make(2);
  ProcessId128 wrong = id;
  wrong.bytes[offsetof(ckpt::RendezvousId, secret) + 5] ^= 1;
  uint32_t none = 0;
  GIVES(CKPT_ERR_TIMEOUT, join_processes(wrong, 0, 2, 0, 0, 300, none));
  std::vector<uint8_t> rubbish = random_bytes(4096, 5);
  say(id, rubbish.data(), rubbish.size());
  ckpt::Hello huge{ckpt::kHelloMagic, ckpt::kFramesVersion, opened(id).secret, 2, 1, {}, 1u << 31};
  say(id, &huge, sizeof huge);
  Child child({"play", "2", "1", id.hex()});
  ProcessMembers own(id, 2, {0}, kPlayBytes);
  own.play();
  own.destroy();
  child.good();
}

TEST("processes: members that contradict each other are told") {
  const ProcessId128 id = ProcessId128::make(2);
  std::atomic<int32_t> first{CKPT_OK};
  uint32_t none = 0, other = 0;
  const uint32_t signal = new_signal();
  Thread waiter([&] { first = join_processes(id, 0, 2, 0, signal, 20000, other); });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // it is the first
  CHECK(eventually([&] { return join_processes(id, 0, 2, 0, 0, 100, none) == CKPT_ERR_STATE; }));
  GIVES(CKPT_ERR_INVALID, join_processes(id, 0, 3, 1, 0, 1000, none));
  OK(ckpt_signal_raise(signal, CKPT_SIGNAL_ABORT));
  waiter.join();
  CHECK_EQ(first, CKPT_ERR_ABORTED);
  OK(ckpt_signal_destroy(signal));
}

TEST("processes: waiting for one that does not come ends, by the limit and by a signal") {
  ProcessId128::make(2);  // UCX is opened by now
  const size_t fds_before = fds(), threads_before = threads();
  const uint32_t signal = new_signal();
  uint32_t none = 0;
  const auto start = Clock::now();
  GIVES(CKPT_ERR_TIMEOUT, join_processes(ProcessId128::make(2), 0, 2, 0, signal, 300, none));
  CHECK(seconds_since(start) < 3);
  std::atomic<int32_t> ended{CKPT_OK};
  {
    const ProcessId128 id = ProcessId128::make(2);
    Thread waiter([&] { ended = join_processes(id, 0, 2, 0, signal, 20000, none); });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    OK(ckpt_signal_raise(signal, CKPT_SIGNAL_ABORT));
  }
  CHECK_EQ(ended, CKPT_ERR_ABORTED);
  OK(ckpt_signal_destroy(signal));
  CHECK(eventually([&] { return fds() <= fds_before && threads() <= threads_before; }));
}

TEST("processes: an abort ends a broadcast that the other never calls") {
  const ProcessId128 id = ProcessId128::make(2);
  Child child({"come", "2", "1", id.hex()});
  ProcessMembers own(id, 2, {0}, kPlayBytes);
  const auto& self = own.all[0];
  const uint32_t event = new_event(0);
  OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, 1, 0, 1 << 20));
  OK(ckpt_event_record(event, self.stream));
  const auto start = Clock::now();
  OK(ckpt_communicator_abort(self.communicator));
  CHECK(seconds_since(start) < 2);
  const int32_t status = ckpt_event_wait(event, 0, 2000);
  CHECK(status == CKPT_ERR_ABORTED || status == CKPT_ERR_IO);
  GIVES(CKPT_ERR_ABORTED, ckpt_communicator_broadcast(self.communicator, self.stream, self.memory,
                                                      1, 0, 4096));
  OK(ckpt_event_destroy(event));
  child.good();
}

TEST("processes: a peer that is killed ends the wait for it, and so does an abort") {
  lose_peer("", true);
  lose_peer("tcp", true);
  lose_peer("tcp", false);
  lose_peer("posix,cma,self", false);
  lose_peer("", false);
}

TEST("processes: twenty rounds leave no thread and no descriptor") {
  ProcessId128::make(2);
  const size_t fds_before = fds(), threads_before = threads();
  std::vector<ProcessId128> ids;
  std::vector<std::string> arguments{"come", "2", "1"};
  for (uint32_t i = 0; i < 20; i++) {
    ids.push_back(ProcessId128::make(2));
    arguments.push_back(ids.back().hex());
  }
  Child child(arguments);
  for (const ProcessId128& id : ids) {
    ProcessMembers own(id, 2, {0}, 4096);
    own.destroy();
  }
  child.good();
  CHECK(eventually([&] { return fds() <= fds_before && threads() <= threads_before; }));
}

TEST("which interfaces NCCL_SOCKET_IFNAME takes") {
  const auto takes = [](const char* text, const char* name) {
    return ckpt::InterfaceChoice(text).takes(name);
  };
  CHECK(takes("eth", "eth0") && takes("ib,eth", "eth1") && !takes("eth", "docker0"));
  CHECK(takes("=eth0", "eth0") && !takes("=eth0", "eth01") && takes("=lo,eth0", "lo"));
  CHECK(!takes("^docker,lo", "docker0") && !takes("^docker,lo", "lo") && takes("^docker", "eth0"));
  CHECK(!takes("^=eth0", "eth0") && takes("^=eth0", "eth01"));
}
