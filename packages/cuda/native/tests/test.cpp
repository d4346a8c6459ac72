#include "test.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "common/sha256.h"

extern char** environ;

namespace test {

void fail(const char* file, int line, const std::string& text) {
  const char* name = strrchr(file, '/');
  throw Failure{std::string(name != nullptr ? name + 1 : file) + ":" + std::to_string(line) + ": " +
                text};
}

std::string last_error() {
  char text[1024];
  ckpt_last_error(text, sizeof text);
  return text;
}

void check_status(const char* file, int line, const char* call, int32_t actual, int32_t expected) {
  if (actual == expected) return;
  fail(file, line,
       std::string(call) + " gives " + std::to_string(actual) + ", not " +
           std::to_string(expected) + " (" + last_error() + ")");
}

void host_library_only() {
  if (!kHostLibrary) throw Skipped{"host library"};
}

uint32_t device_count() {
  uint32_t count = 0;
  OK(ckpt_device_count(&count));
  CHECK(count > 0);
  return count;
}

uint32_t device_at(uint32_t index) { return index % device_count(); }

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool eventually(const std::function<bool()>& condition) {
  const auto start = Clock::now();
  while (!condition()) {
    if (seconds_since(start) > 10) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

std::vector<uint8_t> random_bytes(uint64_t count, uint32_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint64_t at = 0; at < count; at += 8) {
    const uint64_t word = random();
    memcpy(bytes.data() + at, &word, std::min<uint64_t>(8, count - at));
  }
  return bytes;
}

std::string hex(const uint8_t* bytes, uint64_t count) {
  std::string text;
  for (uint64_t i = 0; i < count; i++) {
    char digits[3];
    snprintf(digits, sizeof digits, "%02x", bytes[i]);
    text += digits;
  }
  return text;
}

std::string sha256_of(const std::vector<uint8_t>& bytes) {
  uint8_t digest[ckpt::kSha256Bytes];
  ckpt::Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  hash.finish(digest);
  return hex(digest, sizeof digest);
}

TempFile::TempFile(const std::vector<uint8_t>& content, const char* folder) {
  const char* temporary = getenv("TMPDIR");
  path_ = std::string(folder != nullptr      ? folder
                      : temporary != nullptr ? temporary
                                             : "/tmp") +
          "/ckpt-test-XXXXXX";
  const int fd = mkstemp(path_.data());
  CHECK(fd >= 0);
  for (uint64_t done = 0; done < content.size();) {
    const ssize_t count = write(fd, content.data() + done, content.size() - done);
    CHECK(count > 0);
    done += static_cast<uint64_t>(count);
  }
  close(fd);
}

TempFile::~TempFile() { unlink(path_.c_str()); }

ChildResult run_child(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"ckpt-tests", "--child"});
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  int pipe_fds[2];
  CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], 1);
  pid_t child = 0;
  const int result =
      posix_spawn(&child, "/proc/self/exe", &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_fds[1]);
  CHECK(result == 0);
  std::string output;
  char chunk[512];
  for (;;) {
    const ssize_t count = read(pipe_fds[0], chunk, sizeof chunk);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    output.append(chunk, static_cast<size_t>(count));
  }
  close(pipe_fds[0]);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

uint32_t new_signal() {
  uint32_t signal = 0;
  OK(ckpt_signal_create(&signal));
  return signal;
}

uint32_t new_stream(uint32_t device) {
  uint32_t stream = 0;
  OK(ckpt_stream_create(device_at(device), &stream));
  return stream;
}

uint32_t new_event(uint32_t device) {
  uint32_t event = 0;
  OK(ckpt_event_create(device_at(device), &event));
  return event;
}

uint32_t new_memory(uint64_t bytes, uint32_t device) {
  uint32_t memory = 0;
  OK(ckpt_memory_alloc(device_at(device), bytes, &memory));
  return memory;
}

uint32_t open_file(const std::string& path) {
  uint32_t file = 0;
  OK(ckpt_file_open(path.c_str(), &file));
  return file;
}

uint32_t mapped_buffer(uint32_t file) {
  uint32_t buffer = 0;
  OK(ckpt_file_lease(file, 0));
  OK(ckpt_buffer_map(file, &buffer));
  return buffer;
}

uint32_t buffer_with(const std::vector<uint8_t>& content) {
  TempFile source(content, "/dev/shm");
  const uint32_t file = open_file(source.path());
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(content.size(), 0, &buffer));
  const ckpt_read_piece piece{file, buffer, 0, 0, content.size()};
  OK(ckpt_read_start(&piece, 1, 2, 2, 0, &read));
  OK(ckpt_read_wait(read, 0, 10000));
  OK(ckpt_read_destroy(read));
  OK(ckpt_file_close(file));
  return buffer;
}

std::string memory_sha256(uint32_t memory, uint64_t offset, uint64_t bytes) {
  uint8_t digest[32];
  OK(ckpt_memory_sha256(memory, offset, bytes, digest));
  return hex(digest, sizeof digest);
}

BlockedStream::BlockedStream() {
  OK(ckpt_group_create(2, &group_));
  for (uint32_t i = 0; i < 2; i++) {
    streams_[i] = new_stream(i);
    memories_[i] = new_memory(4096, i);
    OK(ckpt_group_join(group_, i, streams_[i], memories_[i]));
  }
  OK(ckpt_group_broadcast(group_, 0, 0, 0, 4096));
}

void BlockedStream::let_go() { OK(ckpt_group_broadcast(group_, 1, 0, 0, 4096)); }

BlockedStream::~BlockedStream() {
  ckpt_group_destroy(group_);
  for (uint32_t i = 0; i < 2; i++) {
    ckpt_stream_destroy(streams_[i]);
    ckpt_memory_free(memories_[i]);
  }
}

}  // namespace test
