// Buffers, devices, device memory, streams, events and copies.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "common/host-memory.h"
#include "test.h"

using namespace test;

namespace {

// "GPU-" and 8-4-4-4-12 hexadecimal digits.
bool is_uuid(const std::string& text) {
  const std::string shape = "GPU-00000000-0000-0000-0000-000000000000";
  if (text.size() != shape.size()) return false;
  for (size_t i = 0; i < shape.size(); i++) {
    if (shape[i] == '0' ? strchr("0123456789abcdef", text[i]) == nullptr : text[i] != shape[i]) {
      return false;
    }
  }
  return true;
}

}  // namespace

TEST("buffers: arguments, sizes, shared memory that another process maps") {
  uint32_t buffer = 0;
  uint64_t bytes = 0;
  char path[128];
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_alloc(0, 0, &buffer));
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_alloc(4096, 6, &buffer));
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_alloc(4096, 0, nullptr));
  for (uint32_t flags : {0u, static_cast<uint32_t>(CKPT_BUFFER_SHARED)}) {
    for (uint64_t much : {uint64_t{1} << 46, UINT64_MAX}) {
      GIVES(CKPT_ERR_MEMORY, ckpt_buffer_alloc(much, flags, &buffer));
    }
  }
  OK(ckpt_buffer_alloc(5'000'001, 0, &buffer));
  OK(ckpt_buffer_bytes(buffer, &bytes));
  CHECK_EQ(bytes, 5'000'001u);
  GIVES(CKPT_ERR_STATE, ckpt_buffer_path(buffer, path, sizeof path));
  uint8_t digest[32];
  OK(ckpt_buffer_sha256(buffer, 0, bytes, digest));
  CHECK_EQ(hex(digest, 32), sha256_of(std::vector<uint8_t>(bytes)));
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_sha256(buffer, 1, bytes, digest));
  OK(ckpt_buffer_free(buffer));

  OK(ckpt_buffer_alloc(1 << 20, CKPT_BUFFER_SHARED, &buffer));
  OK(ckpt_buffer_path(buffer, path, sizeof path));
  CHECK(strncmp(path, "/dev/shm/ckpt-", 14) == 0);
  CHECK_EQ(run_child({"map", path}).output, "0");
  CHECK_EQ(run_child({"map", path}).output, "9");
  OK(ckpt_buffer_sha256(buffer, 0, 1, digest));
  CHECK_EQ(hex(digest, 32), sha256_of({9}));
  OK(ckpt_buffer_free(buffer));
  CHECK(access(path, F_OK) != 0);
}

TEST("devices: each has one uuid, the same in every process") {
  std::string uuids;
  for (uint32_t device = 0; device < 2 && device < device_count(); device++) {
    ckpt_device_info info;
    OK(ckpt_device_describe(device, &info));
    CHECK(is_uuid(info.uuid));
    CHECK(uuids.find(info.uuid) == std::string::npos);
    CHECK(strlen(info.name) > 0);
    uint64_t free_bytes = 0, total_bytes = 0;
    OK(ckpt_device_memory(device, &free_bytes, &total_bytes));
    CHECK_EQ(info.total_bytes, total_bytes);
    uuids += std::string(info.uuid) + " ";
  }
  CHECK_EQ(run_child({"uuids"}).output, uuids);
  ckpt_device_info info;
  GIVES(CKPT_ERR_INVALID, ckpt_device_describe(device_count(), &info));
}

TEST("devices of the host library: as many and as large as ckpt_init was told, without a bus") {
  host_library_only();
  CHECK_EQ(device_count(), kHostDevices);
  ckpt_device_info info;
  OK(ckpt_device_describe(1, &info));
  CHECK_EQ(info.total_bytes, kHostDeviceBytes);
  CHECK_EQ(std::string(info.pci), "");
  CHECK_EQ(info.numa_node, -1);
  uint64_t free_bytes = 0, total_bytes = 0;
  const uint32_t memory = new_memory(10 << 20, 1);
  OK(ckpt_device_memory(1, &free_bytes, &total_bytes));
  CHECK_EQ(free_bytes, kHostDeviceBytes - (10 << 20));
  CHECK_EQ(total_bytes, kHostDeviceBytes);
  OK(ckpt_memory_free(memory));
  OK(ckpt_device_memory(1, &free_bytes, &total_bytes));
  CHECK_EQ(free_bytes, kHostDeviceBytes);
}

TEST("device memory goes down and up, and more than there is is refused") {
  const uint32_t device = device_at(1);
  uint64_t before = 0, during = 0, after = 0, total_bytes = 0;
  uint32_t more = 0;
  OK(ckpt_device_memory(device, &before, &total_bytes));
  GIVES(CKPT_ERR_MEMORY, ckpt_memory_alloc(device, total_bytes + 1, &more));
  GIVES(CKPT_ERR_MEMORY, ckpt_memory_alloc(device, UINT64_MAX, &more));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_alloc(device, 0, &more));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_alloc(device_count(), 4096, &more));
  // Memory that a stream has worked on is given back too. A quarter of what is free, many times
  // over: a leak would not fit.
  const uint64_t bytes = before / 4;
  const uint32_t buffer = buffer_with(random_bytes(4096, 1));
  for (int i = 0; i < 12; i++) {
    const uint32_t memory = new_memory(bytes, 1), stream = new_stream(1);
    OK(ckpt_device_memory(device, &during, &total_bytes));
    CHECK(during + bytes - (bytes >> 4) <= before);
    OK(ckpt_copy_h2d(stream, memory, bytes - 4096, buffer, 0, 4096));
    OK(ckpt_memory_free(memory));
    OK(ckpt_stream_destroy(stream));
  }
  OK(ckpt_buffer_free(buffer));
  OK(ckpt_device_memory(device, &after, &total_bytes));
  CHECK(after + (bytes >> 1) >= before);
}

TEST("memory: an exported handle is opened by another process, which reads and writes it") {
  const std::vector<uint8_t> content = random_bytes(1'234'567, 1);
  const uint32_t buffer = buffer_with(content), memory = new_memory(content.size()),
                 stream = new_stream();
  OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, content.size()));
  OK(ckpt_stream_sync(stream, 0, 10000));
  uint8_t handle[CKPT_HANDLE_BYTES];
  OK(ckpt_memory_export(memory, handle));
  const ChildResult child =
      run_child({"open", kHostLibrary ? "1" : "0", hex(handle, sizeof handle),
                 std::to_string(content.size())});
  CHECK_EQ(child.exit_status, 0);
  CHECK_EQ(child.output, sha256_of(content));
  CHECK_EQ(memory_sha256(memory, 0, content.size()),
           sha256_of(std::vector<uint8_t>(content.size(), 7)));
  // Closing it there has not taken it from here, and a second process is served as well.
  OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, content.size()));
  OK(ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(run_child({"open", "0", hex(handle, sizeof handle), std::to_string(content.size())})
               .output,
           sha256_of(content));
  // More than there is.
  const std::string too_much = std::to_string(64ull << 20);
  CHECK_EQ(run_child({"refuse", hex(handle, sizeof handle), too_much}).output,
           std::to_string(CKPT_ERR_INVALID));
  OK(ckpt_memory_free(memory));
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_buffer_free(buffer));
}

TEST("memory: what is no handle is not opened") {
  uint8_t handle[CKPT_HANDLE_BYTES] = {};
  uint32_t none = 0;
  GIVES(CKPT_ERR_INVALID, ckpt_memory_open(device_count(), handle, 1, &none));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_open(0, handle, 0, &none));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_open(0, nullptr, 1, &none));
  // In a process of its own: a driver that takes it for a handle may end the context.
  for (const char* byte : {"00", "61", "ff"}) {
    std::string wrong;
    for (int i = 0; i < CKPT_HANDLE_BYTES; i++) wrong += byte;
    const std::string status = run_child({"refuse", wrong, "4096"}).output;
    // CUDA says what its driver says.
    CHECK(status == std::to_string(CKPT_ERR_INVALID) ||
          (!kHostLibrary && status == std::to_string(CKPT_ERR_DEVICE)));
  }
}

TEST("memory: a handle of the host library is a name, and opens in its own process too") {
  host_library_only();
  const std::vector<uint8_t> content(10'000, 7);
  const uint32_t memory = new_memory(content.size());
  OK(ckpt_memory_fill(memory, 0, content.size(), 7));
  uint8_t handle[CKPT_HANDLE_BYTES];
  OK(ckpt_memory_export(memory, handle));
  uint32_t opened = 0, none = 0;
  OK(ckpt_memory_open(0, handle, content.size(), &opened));
  uint8_t again[CKPT_HANDLE_BYTES];
  GIVES(CKPT_ERR_STATE, ckpt_memory_export(opened, again));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_open(0, handle, content.size() + 1, &none));
  OK(ckpt_memory_free(memory));
  // Like an IPC mapping: it lives on, but nobody can open the name any more.
  CHECK_EQ(memory_sha256(opened, 0, 10), sha256_of(std::vector<uint8_t>(10, 7)));
  GIVES(CKPT_ERR_IO, ckpt_memory_open(0, handle, 1, &none));
  OK(ckpt_memory_free(opened));
  uint8_t wrong[CKPT_HANDLE_BYTES] = "/etc/passwd";
  GIVES(CKPT_ERR_INVALID, ckpt_memory_open(0, wrong, 1, &none));
  strcpy(reinterpret_cast<char*>(wrong), "/ckpt-../x");
  GIVES(CKPT_ERR_INVALID, ckpt_memory_open(0, wrong, 1, &none));
  memset(wrong, 'a', sizeof wrong);
  GIVES(CKPT_ERR_INVALID, ckpt_memory_open(0, wrong, 1, &none));
}

TEST("memory: fill and sha256 check their ranges") {
  const uint32_t memory = new_memory(10'000);
  OK(ckpt_memory_fill(memory, 0, 10'000, 255));
  OK(ckpt_memory_fill(memory, 10, 20, 1));
  std::vector<uint8_t> expected(10'000, 255);
  std::fill_n(expected.begin() + 10, 20, 1);
  CHECK_EQ(memory_sha256(memory, 0, 10'000), sha256_of(expected));
  OK(ckpt_memory_fill(memory, 10'000, 0, 1));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_fill(memory, 1, 10'000, 1));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_fill(memory, UINT64_MAX, 2, 1));
  GIVES(CKPT_ERR_INVALID, ckpt_memory_fill(memory, 0, 1, 256));
  uint8_t digest[32];
  GIVES(CKPT_ERR_INVALID, ckpt_memory_sha256(memory, 10'000, 1, digest));
  OK(ckpt_memory_free(memory));
}

TEST("shared memory that a process leaves behind goes when it ends, or with the next start") {
  const auto exists = [](const std::string& name) {
    return access(name.c_str(), F_OK) == 0;
  };
  for (const char* how : {"normally", "quickly"}) {
    const ChildResult child = run_child({"leave", how});
    CHECK_EQ(child.exit_status, 0);
    CHECK(child.output.rfind("/dev/shm/ckpt-", 0) == 0);
    CHECK(!exists(child.output));
  }
  const ChildResult killed = run_child({"leave", "killed"});
  CHECK_EQ(killed.exit_status, -1);
  uint32_t buffer = 0;  // of a process that lives
  char path[128];
  OK(ckpt_buffer_alloc(4096, CKPT_BUFFER_SHARED, &buffer));
  OK(ckpt_buffer_path(buffer, path, sizeof path));
  CHECK_EQ(run_child({"uuids"}).exit_status, 0);
  CHECK(!exists(killed.output));
  CHECK(exists(path));
  OK(ckpt_buffer_free(buffer));
}

TEST("a start removes nothing whose lock is held, or that has another name") {
  // Pids end below 2^22: like the pid of another container, this one is nobody's here.
  const std::string foreign = "/dev/shm/ckpt-4194305-0-00000000000000ff";
  const std::string other = "/dev/shm/ckpt-4194305-notes";
  const int lock = open(foreign.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  close(open(other.c_str(), O_RDWR | O_CREAT, 0600));
  CHECK(lock >= 0 && flock(lock, LOCK_SH) == 0);
  const int held = run_child({"uuids"}).exit_status;
  const bool kept = access(foreign.c_str(), F_OK) == 0;
  close(lock);
  const int released = run_child({"uuids"}).exit_status;
  const bool removed = access(foreign.c_str(), F_OK) != 0;
  const bool other_kept = unlink(other.c_str()) == 0;
  unlink(foreign.c_str());
  CHECK(held == 0 && released == 0);
  CHECK(kept);
  CHECK(removed);
  CHECK(other_kept);
}

TEST("memory that is not there is refused instead of raising SIGBUS") {
  // A mapping behind the end of its object stands for shared memory that is full.
  TempFile source(random_bytes(4096, 1), "/dev/shm");
  const int fd = open(source.path().c_str(), O_RDWR);
  void* address = mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(address != MAP_FAILED);
  int thrown = 0;
  for (bool writing : {false, true}) {
    try {
      ckpt::populate(address, 1 << 20, writing, 2);
    } catch (const std::exception&) {
      thrown++;
    }
  }
  munmap(address, 1 << 20);
  close(fd);
  CHECK_EQ(thrown, 2);
}

TEST("copies run in order and behind the caller; events are complete when the bytes are there") {
  const std::vector<uint8_t> content = random_bytes(8 << 20, 1);
  const uint32_t buffer = buffer_with(content), memory = new_memory(8 << 20), stream = new_stream();
  const uint32_t event = new_event(), signal = new_signal();
  OK(ckpt_event_query(event));
  OK(ckpt_event_wait(event, 0, 0));
  OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, 4 << 20));
  OK(ckpt_copy_h2d(stream, memory, 1 << 20, buffer, 5'000'000, 3 << 20));
  OK(ckpt_copy_h2d(stream, memory, 5, buffer, 77, 0));
  const ckpt_copy_piece pieces[2] = {{4 << 20, 0, 2 << 20}, {(6 << 20) + 3, 1, 1'000'001}};
  OK(ckpt_copy_device(stream, memory, memory, pieces, 2));
  OK(ckpt_event_record(event, stream));
  OK(ckpt_event_notify(event, signal));
  uint32_t bits = 0;
  OK(ckpt_signal_wait(signal, 10000, &bits));
  CHECK(eventually([&] { return ckpt_event_query(event) == CKPT_OK; }));
  std::vector<uint8_t> expected(content);
  memcpy(expected.data() + (1 << 20), content.data() + 5'000'000, 3 << 20);
  memcpy(expected.data() + (4 << 20), expected.data(), 2 << 20);
  memcpy(expected.data() + (6 << 20) + 3, expected.data() + 1, 1'000'001);
  CHECK_EQ(memory_sha256(memory, 0, (6 << 20)),
           sha256_of({expected.begin(), expected.begin() + (6 << 20)}));
  CHECK_EQ(
      memory_sha256(memory, (6 << 20) + 3, 1'000'001),
      sha256_of({expected.begin() + (6 << 20) + 3, expected.begin() + (6 << 20) + 3 + 1'000'001}));
  // A complete event raises at once.
  OK(ckpt_event_notify(event, signal));
  OK(ckpt_signal_wait(signal, 0, &bits));

  GIVES(CKPT_ERR_INVALID, ckpt_copy_h2d(stream, memory, 1, buffer, 0, 8 << 20));
  GIVES(CKPT_ERR_INVALID, ckpt_copy_h2d(stream, memory, 0, buffer, 1, 8 << 20));
  const ckpt_copy_piece outside{(8 << 20) - 1, 0, 2};
  GIVES(CKPT_ERR_INVALID, ckpt_copy_device(stream, memory, memory, &outside, 1));
  GIVES(CKPT_ERR_INVALID, ckpt_copy_device(stream, memory, memory, nullptr, 1));
  const uint32_t elsewhere = new_event(1);
  GIVES(device_count() > 1 ? CKPT_ERR_INVALID : CKPT_OK, ckpt_event_record(elsewhere, stream));
  OK(ckpt_event_destroy(elsewhere));
  OK(ckpt_event_destroy(event));
  OK(ckpt_signal_destroy(signal));
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
}

TEST("work that is queued keeps what it uses, and destroying a stream waits for it") {
  const std::vector<uint8_t> content = random_bytes(4 << 20, 1);
  const uint32_t buffer = buffer_with(content), memory = new_memory(4 << 20), stream = new_stream();
  const uint32_t kept = new_memory(4 << 20);
  for (int i = 0; i < 20; i++) OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, 4 << 20));
  const ckpt_copy_piece piece{0, 0, 4 << 20};
  OK(ckpt_copy_device(stream, kept, memory, &piece, 1));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
  OK(ckpt_stream_destroy(stream));
  CHECK_EQ(memory_sha256(kept, 0, 4 << 20), sha256_of(content));
  OK(ckpt_memory_free(kept));
}

TEST("a stream waits for an event of another; waits time out and are aborted from another thread") {
  BlockedStream blocked;
  const uint32_t first = new_event(), second = new_event(1), stream = new_stream(1),
                 signal = new_signal();
  OK(ckpt_stream_wait_event(stream, first));  // never recorded: nothing to wait for
  OK(ckpt_stream_sync(stream, 0, 10000));
  OK(ckpt_event_record(first, blocked.stream()));
  OK(ckpt_stream_wait_event(stream, first));
  OK(ckpt_event_record(second, stream));
  GIVES(CKPT_NOT_READY, ckpt_event_query(first));
  GIVES(CKPT_NOT_READY, ckpt_event_query(second));
  GIVES(CKPT_ERR_TIMEOUT, ckpt_event_wait(second, signal, 10));
  GIVES(CKPT_ERR_TIMEOUT, ckpt_stream_sync(stream, signal, 10));

  std::atomic<int> aborted{0};
  std::vector<Thread> waiters;
  waiters.emplace_back(
      [&] { aborted += ckpt_event_wait(first, signal, 30000) == CKPT_ERR_ABORTED; });
  waiters.emplace_back(
      [&] { aborted += ckpt_event_wait(second, signal, 30000) == CKPT_ERR_ABORTED; });
  waiters.emplace_back(
      [&] { aborted += ckpt_stream_sync(stream, signal, 30000) == CKPT_ERR_ABORTED; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  OK(ckpt_signal_raise(signal, CKPT_SIGNAL_ABORT));
  for (Thread& waiter : waiters) waiter.join();
  CHECK_EQ(aborted, 3);

  OK(ckpt_signal_reset(signal));
  OK(ckpt_event_notify(second, signal));
  GIVES(CKPT_NOT_READY, ckpt_event_query(second));
  blocked.let_go();
  uint32_t bits = 0;
  OK(ckpt_signal_wait(signal, 10000, &bits));
  OK(ckpt_event_query(first));
  OK(ckpt_event_query(second));
  OK(ckpt_stream_sync(stream, 0, 10000));
  OK(ckpt_event_destroy(first));
  OK(ckpt_event_destroy(second));
  OK(ckpt_signal_destroy(signal));
  OK(ckpt_stream_destroy(stream));
}

TEST("an event can be recorded again and destroyed while it is pending") {
  const uint32_t event = new_event(), signal = new_signal();
  {
    BlockedStream blocked;
    const uint32_t free_stream = new_stream();
    OK(ckpt_event_record(event, blocked.stream()));
    GIVES(CKPT_NOT_READY, ckpt_event_query(event));
    OK(ckpt_event_record(event, free_stream));
    OK(ckpt_event_wait(event, 0, 10000));
    OK(ckpt_event_record(event, blocked.stream()));
    OK(ckpt_event_notify(event, signal));
    OK(ckpt_event_destroy(event));
    blocked.let_go();
    uint32_t bits = 0;
    OK(ckpt_signal_wait(signal, 10000, &bits));
    OK(ckpt_stream_destroy(free_stream));
  }
  OK(ckpt_signal_destroy(signal));
}

TEST("a stream that waits for another rank holds up nothing else on its device") {
  BlockedStream blocked;
  const std::vector<uint8_t> content = random_bytes(1 << 20, 1);
  for (uint32_t device = 0; device < 2; device++) {
    // What waits for the whole device (pinning, freeing) included.
    const uint32_t buffer = buffer_with(content), memory = new_memory(1 << 20, device),
                   stream = new_stream(device);
    OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, 1 << 20));
    OK(ckpt_stream_sync(stream, 0, 10000));
    CHECK_EQ(memory_sha256(memory, 0, 1 << 20), sha256_of(content));
    OK(ckpt_stream_destroy(stream));
    OK(ckpt_memory_free(memory));
    OK(ckpt_buffer_free(buffer));
  }
}

TEST("an abort goes along a chain of streams, and lets a stream be destroyed that was waiting") {
  BlockedStream blocked;
  const uint32_t chain[3] = {new_stream(0), new_stream(1), new_stream(2)};
  const uint32_t events[4] = {new_event(0), new_event(0), new_event(1), new_event(2)};
  const uint32_t ending = new_stream(1);
  OK(ckpt_event_record(events[0], blocked.stream()));
  for (uint32_t i = 0; i < 3; i++) {
    OK(ckpt_stream_wait_event(chain[i], events[i]));
    OK(ckpt_event_record(events[i + 1], chain[i]));
  }
  OK(ckpt_stream_wait_event(ending, events[3]));
  std::atomic<bool> destroyed{false};
  Thread destroyer([&] { destroyed = ckpt_stream_destroy(ending) == CKPT_OK; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(!destroyed);
  for (uint32_t event : events) GIVES(CKPT_NOT_READY, ckpt_event_query(event));
  OK(ckpt_group_abort(blocked.group()));
  destroyer.join();
  CHECK(destroyed);
  for (uint32_t event : events) GIVES(CKPT_ERR_ABORTED, ckpt_event_wait(event, 0, 10000));
  for (uint32_t stream : chain) {
    GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(stream, 0, 10000));
    OK(ckpt_stream_sync(stream, 0, 10000));
    OK(ckpt_stream_destroy(stream));
  }
  for (uint32_t event : events) OK(ckpt_event_destroy(event));
}

TEST("an error stays with the stream, reaches those that wait for it, and sync clears it") {
  const std::vector<uint8_t> content = random_bytes(4096, 1);
  TempFile source(content);
  const uint32_t file = open_file(source.path());
  const uint32_t mapped = mapped_buffer(file);
  CHECK_EQ(run_child({"write", source.path()}).exit_status, 0);
  const uint32_t good = buffer_with(content), memory = new_memory(8192), stream = new_stream(),
                 other = new_stream();
  const uint32_t before = new_event(), behind = new_event(), elsewhere = new_event();
  OK(ckpt_memory_fill(memory, 0, 8192, 0));
  OK(ckpt_event_record(before, stream));
  OK(ckpt_copy_h2d(stream, memory, 0, mapped, 0, 4096));
  OK(ckpt_copy_h2d(stream, memory, 0, good, 0, 4096));  // left out
  OK(ckpt_event_record(behind, stream));
  OK(ckpt_stream_wait_event(other, behind));
  OK(ckpt_copy_h2d(other, memory, 4096, good, 0, 4096));  // left out too
  OK(ckpt_event_record(elsewhere, other));
  OK(ckpt_event_wait(before, 0, 10000));
  GIVES(CKPT_ERR_CHANGED, ckpt_event_wait(behind, 0, 10000));
  GIVES(CKPT_ERR_CHANGED, ckpt_event_wait(elsewhere, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, 8192), sha256_of(std::vector<uint8_t>(8192)));
  OK(ckpt_event_record(behind, stream));
  GIVES(CKPT_ERR_CHANGED, ckpt_event_wait(behind, 0, 10000));
  for (uint32_t failed : {stream, other}) {
    GIVES(CKPT_ERR_CHANGED, ckpt_stream_sync(failed, 0, 10000));
    OK(ckpt_stream_sync(failed, 0, 10000));
  }
  OK(ckpt_copy_h2d(stream, memory, 0, good, 0, 4096));
  OK(ckpt_event_record(behind, stream));
  OK(ckpt_event_wait(behind, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, 4096), sha256_of(content));
  for (uint32_t event : {before, behind, elsewhere}) OK(ckpt_event_destroy(event));
  for (uint32_t ended : {stream, other}) OK(ckpt_stream_destroy(ended));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(good));
  OK(ckpt_buffer_free(mapped));
  OK(ckpt_file_close(file));
}

TEST("a throttled stream takes the time that its rate says") {
  host_library_only();
  CHECK_EQ(run_child({"throttled"}).exit_status, 0);
}

TEST("streams, events and memory are made, used and destroyed by many threads at once") {
  const std::vector<uint8_t> content = random_bytes(1 << 20, 1);
  const uint32_t buffer = buffer_with(content);
  const std::string expected = sha256_of(content);
  std::atomic<int> wrong{0};
  std::vector<Thread> threads;
  for (uint32_t device = 0; device < 4; device++) {
    threads.emplace_back([&, device] {
      try {
        for (int i = 0; i < 20; i++) {
          const uint32_t memory = new_memory(1 << 20, device), stream = new_stream(device),
                         event = new_event(device);
          OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, 1 << 20));
          OK(ckpt_event_record(event, stream));
          OK(ckpt_event_wait(event, 0, 10000));
          CHECK_EQ(memory_sha256(memory, 0, 1 << 20), expected);
          OK(ckpt_memory_free(memory));
          OK(ckpt_event_destroy(event));
          OK(ckpt_stream_destroy(stream));
        }
      } catch (const Failure&) {
        wrong++;
      }
    });
  }
  for (Thread& thread : threads) thread.join();
  CHECK_EQ(wrong, 0);
  OK(ckpt_buffer_free(buffer));
}
