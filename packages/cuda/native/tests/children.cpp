// The other process of tests that need one.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "p2p-owner.h"
#include "process-members.h"
#include "test.h"

namespace test {
namespace {

using Arguments = std::vector<std::string>;

void init(uint64_t copy_bytes_per_second) {
  const ckpt_config config{2, 0, kHostDeviceBytes, copy_bytes_per_second, 0};
  OK(ckpt_init(&config));
}

void parse_handle(const std::string& text, uint8_t* handle) {
  for (size_t i = 0; i < CKPT_HANDLE_BYTES; i++) {
    handle[i] = static_cast<uint8_t>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
  }
}

// open DEVICE HANDLE BYTES: prints the digest of the memory behind an exported handle, then fills
// it with 7.
int open_handle(const Arguments& arguments) {
  uint8_t handle[CKPT_HANDLE_BYTES];
  parse_handle(arguments[2], handle);
  const uint32_t device = static_cast<uint32_t>(std::stoul(arguments[1]));
  const uint64_t bytes = std::stoull(arguments[3]);
  init(0);
  uint32_t memory = 0;
  OK(ckpt_memory_open(device, handle, bytes, &memory));
  printf("%s", memory_sha256(memory, 0, bytes).c_str());
  OK(ckpt_memory_fill(memory, 0, bytes, 7));
  OK(ckpt_memory_free(memory));
  return 0;
}

// refuse HANDLE BYTES: as open, where the handle must not open; prints the status.
int refuse_handle(const Arguments& arguments) {
  uint8_t handle[CKPT_HANDLE_BYTES];
  parse_handle(arguments[1], handle);
  init(0);
  uint32_t memory = 0;
  printf("%d", ckpt_memory_open(0, handle, std::stoull(arguments[2]), &memory));
  return 0;
}

// write PATH | truncate PATH: as a trainer that does not know of us; prints the seconds it waited
// for the lease.
int change_file(const Arguments& arguments) {
  const auto start = Clock::now();
  if (arguments[0] == "truncate") {
    CHECK(truncate(arguments[1].c_str(), 100) == 0);
  } else {
    const int fd = open(arguments[1].c_str(), O_WRONLY);
    CHECK(fd >= 0);
    CHECK(pwrite(fd, "changed", 7, 0) == 7);
    close(fd);
  }
  printf("%.3f", seconds_since(start));
  return 0;
}

// map PATH: prints the first byte of shared memory and writes 9 there.
int map_path(const Arguments& arguments) {
  const int fd = open(arguments[1].c_str(), O_RDWR);
  CHECK(fd >= 0);
  uint8_t* bytes =
      static_cast<uint8_t*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  CHECK(bytes != MAP_FAILED);
  printf("%d", bytes[0]);
  bytes[0] = 9;
  return 0;
}

int uuids(const Arguments&) {
  init(0);
  for (uint32_t device = 0; device < 2 && device < device_count(); device++) {
    ckpt_device_info info;
    OK(ckpt_device_describe(device, &info));
    printf("%s ", info.uuid);
  }
  return 0;
}

int before_init(const Arguments&) {
  uint32_t out = 0;
  GIVES(CKPT_ERR_STATE, ckpt_device_count(&out));
  GIVES(CKPT_ERR_STATE, ckpt_memory_alloc(0, 4096, &out));
  GIVES(CKPT_ERR_STATE, ckpt_stream_create(0, &out));
  GIVES(CKPT_ERR_STATE, ckpt_buffer_alloc(4096, 0, &out));
  GIVES(CKPT_ERR_STATE, ckpt_group_create(2, &out));
  GIVES(CKPT_ERR_STATE, ckpt_memory_open(0, reinterpret_cast<const uint8_t*>(&out), 1, &out));
  for (uint32_t devices : {0u, 65u}) {
    const ckpt_config wrong{devices, 0, 0, 0, 0};
    if (kHostLibrary) GIVES(CKPT_ERR_INVALID, ckpt_init(&wrong));
  }
  GIVES(CKPT_ERR_STATE, ckpt_device_count(&out));
  const ckpt_config right{3, 0, 0, 0, 0};
  OK(ckpt_init(&right));
  OK(ckpt_device_count(&out));
  CHECK(kHostLibrary ? out == 3 : out > 0);
  uint64_t free_bytes = 0, total_bytes = 0;
  OK(ckpt_device_memory(out - 1, &free_bytes, &total_bytes));
  CHECK(total_bytes > 0 && free_bytes > 0 && free_bytes <= total_bytes);
  return 0;
}

// A stream of 40 MB/s copies 4 MB in 0.1 s, in one piece or in rows, and its event is not complete
// before.
int throttled(const Arguments&) {
  init(40'000'000);
  const uint64_t bytes = 4'000'000;
  const std::vector<uint8_t> content = random_bytes(bytes, 1);
  const uint32_t buffer = buffer_with(content), memory = new_memory(bytes), stream = new_stream(),
                 event = new_event();
  for (const bool in_rows : {false, true}) {
    OK(ckpt_memory_fill(memory, 0, bytes, 0));
    const auto start = Clock::now();
    if (in_rows) {
      OK(ckpt_copy_h2d_2d(stream, memory, 0, 6400, buffer, 0, 6400, 6400, 625));
    } else {
      OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, bytes));
    }
    OK(ckpt_event_record(event, stream));
    GIVES(CKPT_NOT_READY, ckpt_event_query(event));
    OK(ckpt_event_wait(event, 0, 10000));
    CHECK(seconds_since(start) > 0.09);
    CHECK_EQ(memory_sha256(memory, 0, bytes), sha256_of(content));
  }
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_event_destroy(event));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
  return 0;
}

// An abort ends a broadcast of one second in the middle of its copy.
int abort_copy(const Arguments&) {
  init(40'000'000);
  const uint64_t bytes = 40'000'000;
  uint32_t group = 0;
  OK(ckpt_group_create(2, &group));
  const uint32_t streams[2] = {new_stream(0), new_stream(1)};
  const uint32_t memories[2] = {new_memory(bytes, 0), new_memory(bytes, 1)};
  for (uint32_t i = 0; i < 2; i++) OK(ckpt_group_join(group, i, streams[i], memories[i]));
  for (uint32_t i = 0; i < 2; i++) OK(ckpt_group_broadcast(group, i, 0, 0, bytes));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  OK(ckpt_group_abort(group));
  for (uint32_t stream : streams) GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(stream, 0, 10000));
  OK(ckpt_group_destroy(group));
  for (uint32_t stream : streams) OK(ckpt_stream_destroy(stream));
  for (uint32_t memory : memories) OK(ckpt_memory_free(memory));
  return 0;
}

// leave HOW: ends without freeing what it made, prints the path of its shared memory.
int leave_memory(const Arguments& arguments) {
  init(0);
  uint32_t buffer = 0;
  char path[128];
  OK(ckpt_buffer_alloc(4096, CKPT_BUFFER_SHARED, &buffer));
  OK(ckpt_buffer_path(buffer, path, sizeof path));
  printf("%s", path);
  fflush(stdout);
  if (arguments[1] == "quickly") std::quick_exit(0);
  if (arguments[1] == "killed") raise(SIGKILL);
  return 0;
}

}  // namespace

int child_main(const Arguments& arguments) {
  const struct {
    const char* name;
    int (*run)(const Arguments&);
  } modes[] = {{"open", open_handle},    {"refuse", refuse_handle},
               {"write", change_file},   {"truncate", change_file},
               {"map", map_path},        {"uuids", uuids},           {"before-init", before_init},
               {"throttled", throttled}, {"abort-copy", abort_copy}, {"leave", leave_memory},
               {"share", owner_child},   {"read", reader_child},
               {"bench-read", bench_read_child},
#ifndef CKPT_TESTS_CUDA
               {"communicate", communicate_child},
               {"bench-broadcast", bench_broadcast_child},
#endif
  };
  try {
    for (const auto& mode : modes) {
      if (arguments[0] == mode.name) return mode.run(arguments);
    }
  } catch (const Failure& failure) {
    fprintf(stderr, "%s\n", failure.text.c_str());
  }
  return 1;
}

}  // namespace test
