#include "p2p-owner.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>


extern char** environ;

namespace test {
namespace {

constexpr uint32_t kFrameMax = 64u << 10;

std::vector<uint8_t> bytes_of(const std::string& text) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  return bytes;
}

std::string line_of(int fd) {
  std::string line;
  for (char one = 0;;) {
    const ssize_t count = read(fd, &one, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0 || one == '\n') return line;
    line += one;
  }
}

}  // namespace

Owner::Owner(uint64_t bytes) {
  int in[2], out[2];
  CHECK(pipe2(in, O_CLOEXEC) == 0);
  CHECK(pipe2(out, O_CLOEXEC) == 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out[0], 0);
  posix_spawn_file_actions_adddup2(&actions, in[1], 1);
  std::string count = std::to_string(bytes), program = "ckpt-tests", child = "--child",
              mode = "share";
  char* arguments[] = {program.data(), child.data(), mode.data(), count.data(), nullptr};
  const int result =
      posix_spawn(&child_, "/proc/self/exe", &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(in[1]);
  close(out[0]);
  out_ = out[1];
  address_ = bytes_of(line_of(in[0]));
  key_ = bytes_of(line_of(in[0]));
  close(in[0]);
  CHECK(result == 0);
}

void Owner::signal(int number) const {
  kill(child_, number);
  if (number != SIGSTOP) return;
  std::this_thread::sleep_for(std::chrono::milliseconds(30));  // until it does
}

void Owner::kill_and_wait() {
  signal(SIGKILL);
  int status = 0;
  CHECK(waitpid(child_, &status, 0) == child_);
  child_ = 0;
}

void Owner::end() {
  close(std::exchange(out_, -1));
  signal(SIGCONT);
  int status = 0;
  CHECK(waitpid(std::exchange(child_, 0), &status, 0) > 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

Owner::~Owner() {
  if (out_ >= 0) close(out_);
  if (child_ == 0) return;
  signal(SIGCONT);
  int status = 0;
  waitpid(child_, &status, 0);
}

uint32_t open_p2p() {
  uint32_t p2p = 0;
  const int32_t status = ckpt_p2p_open("", &p2p);
  if (status == CKPT_ERR_UNSUPPORTED) {
    static std::string why;
    why = last_error();
    throw Skipped{why.c_str()};
  }
  OK(status);
  return p2p;
}

Attached::Attached(uint32_t p2p, const Owner& owner)
    : Attached(p2p, owner.address(), owner.key()) {}

Attached::Attached(uint32_t p2p, const std::vector<uint8_t>& address,
                   const std::vector<uint8_t>& key) {
  OK(ckpt_p2p_connect(p2p, address.data(), static_cast<uint32_t>(address.size()), &peer));
  OK(ckpt_p2p_attach(peer, key.data(), static_cast<uint32_t>(key.size()), &remote));
}

Attached::~Attached() {
  ckpt_p2p_detach(remote);
  ckpt_p2p_disconnect(peer);
}

// read ADDRESS KEY: is killed amid reads.
int reader_child(const std::vector<std::string>& arguments) {
  const ckpt_config config{2, 0, kHostDeviceBytes, 0, 0};
  OK(ckpt_init(&config));
  const Attached owner(open_p2p(), bytes_of(arguments[1]), bytes_of(arguments[2]));
  const uint32_t stream = new_stream(), memory = new_memory(16 << 20);
  for (uint32_t i = 0; i < 1000; i++)
    OK(ckpt_copy_remote(stream, memory, 0, owner.remote, 0, 16 << 20));
  ckpt_stream_sync(stream, 0, 60);
  raise(SIGKILL);
  return 0;
}

int owner_child(const std::vector<std::string>& arguments) {
  const ckpt_config config{2, 0, kHostDeviceBytes, 0, 0};
  OK(ckpt_init(&config));
  const uint32_t p2p = open_p2p();
  const uint32_t buffer = buffer_with(random_bytes(std::stoull(arguments[1]), kOwnerSeed));
  std::vector<uint8_t> bytes(kFrameMax);
  uint32_t length = 0;
  OK(ckpt_p2p_address(p2p, bytes.data(), kFrameMax, &length));
  printf("%s\n", hex(bytes.data(), length).c_str());
  OK(ckpt_p2p_share(p2p, buffer, bytes.data(), kFrameMax, &length));
  printf("%s\n", hex(bytes.data(), length).c_str());
  fflush(stdout);
  for (char end; read(0, &end, 1) > 0;) {
  }
  OK(ckpt_p2p_unshare(p2p, buffer));
  OK(ckpt_p2p_close(p2p));
  OK(ckpt_buffer_free(buffer));
  // LeakSanitizer's look at a process that has just ended threads hung now and then; what an owner
  // does is looked at in the test's own process too.
  _exit(0);
}

}  // namespace test
