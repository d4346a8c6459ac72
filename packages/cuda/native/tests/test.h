// A tiny test runner: TEST("name") { CHECK(...); } in any file of this folder.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "ckpt.h"

namespace test {

struct Failure {
  std::string text;
};

// Thrown by skip(): the test does not apply to this library.
struct Skipped {
  const char* why;
};

struct Registration {
  Registration(const char* name, void (*body)());
};

[[noreturn]] void fail(const char* file, int line, const std::string& text);
std::string last_error();

void check_status(const char* file, int line, const char* call, int32_t actual, int32_t expected);

// The library that these tests are linked with.
#ifdef CKPT_TESTS_CUDA
constexpr bool kHostLibrary = false;
#else
constexpr bool kHostLibrary = true;
#endif
// Ends the test: what it is about is not in the CUDA library.
void host_library_only();

// Devices of the host library and their memory in this program.
constexpr uint32_t kHostDevices = 4;
constexpr uint64_t kHostDeviceBytes = 64ull << 20;

// Tests number devices from 0 on without asking how many there are: with two the third is the
// first again, with one all are the same.
uint32_t device_count();
uint32_t device_at(uint32_t index);

// A check that fails leaves a test by an exception: its threads are joined all the same.
class Thread : public std::thread {
 public:
  using std::thread::thread;
  Thread(Thread&&) = default;
  Thread& operator=(Thread&&) = default;
  ~Thread() {
    if (joinable()) join();
  }
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start);

// Waits up to 10 s until the condition holds; false when it never did.
bool eventually(const std::function<bool()>& condition);

std::vector<uint8_t> random_bytes(uint64_t count, uint32_t seed);
std::string sha256_of(const std::vector<uint8_t>& bytes);
std::string hex(const uint8_t* bytes, uint64_t count);

// A file with this content in a folder on disk (or on tmpfs), removed with the object.
class TempFile {
 public:
  explicit TempFile(const std::vector<uint8_t>& content, const char* folder = nullptr);
  ~TempFile();
  TempFile(const TempFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// This program again, in a mode of main.cpp's children: what it wrote to stdout, and its status.
struct ChildResult {
  int exit_status;  // -1: ended by a signal
  std::string output;
};
ChildResult run_child(std::vector<std::string> arguments);
int child_main(const std::vector<std::string>& arguments);

// Objects by one call, checked. `device` may be any number (device_at).
uint32_t new_signal();
uint32_t new_stream(uint32_t device = 0);
uint32_t new_event(uint32_t device = 0);
uint32_t new_memory(uint64_t bytes, uint32_t device = 0);
uint32_t open_file(const std::string& path);
// The file's mapping, under a lease of its own.
uint32_t mapped_buffer(uint32_t file);
// Filled through a file and a read, which is how bytes come into a buffer.
uint32_t buffer_with(const std::vector<uint8_t>& content);
std::string memory_sha256(uint32_t memory, uint64_t offset, uint64_t bytes);

// A stream whose work does not go on: member 0 of a group whose other member never comes.
class BlockedStream {
 public:
  BlockedStream();
  ~BlockedStream();
  BlockedStream(const BlockedStream&) = delete;
  uint32_t stream() const { return streams_[0]; }
  uint32_t group() const { return group_; }
  void let_go();  // the other member comes

 private:
  uint32_t group_ = 0;
  uint32_t streams_[2] = {};
  uint32_t memories_[2] = {};
};

}  // namespace test

#define TEST_NAME_(a, b) a##b
#define TEST_NAME(a, b) TEST_NAME_(a, b)
#define TEST(name)                                                                             \
  static void TEST_NAME(test_body_, __LINE__)();                                               \
  static test::Registration TEST_NAME(test_entry_, __LINE__)(name,                             \
                                                             TEST_NAME(test_body_, __LINE__)); \
  static void TEST_NAME(test_body_, __LINE__)()

#define CHECK(condition) \
  if (!(condition)) test::fail(__FILE__, __LINE__, #condition)
#define CHECK_EQ(a, b) \
  if (!((a) == (b))) test::fail(__FILE__, __LINE__, std::string(#a " == " #b))
#define OK(call) test::check_status(__FILE__, __LINE__, #call, (call), CKPT_OK)
#define GIVES(status, call) test::check_status(__FILE__, __LINE__, #call, (call), (status))
