// The library itself, handles, signals, SHA-256, the reference counters.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <cstring>

#include "common/sha256.h"
#include "test.h"

using namespace test;

TEST("the ABI version, the struct sizes and the kind") {
  CHECK_EQ(ckpt_abi_version(), static_cast<uint32_t>(CKPT_ABI_VERSION));
  CHECK_EQ(ckpt_struct_bytes("ckpt_config"), 32u);
  CHECK_EQ(ckpt_struct_bytes("ckpt_device_info"), 160u);
  CHECK_EQ(ckpt_struct_bytes("ckpt_file_info"), 40u);
  CHECK_EQ(ckpt_struct_bytes("ckpt_read_piece"), 32u);
  CHECK_EQ(ckpt_struct_bytes("ckpt_read_progress"), 32u);
  CHECK_EQ(ckpt_struct_bytes("ckpt_copy_piece"), 24u);
  CHECK_EQ(ckpt_struct_bytes("ckpt_gather_piece"), 56u);
  CHECK_EQ(ckpt_struct_bytes("ckpt_h2d_piece"), 56u);
  CHECK_EQ(ckpt_struct_bytes("no_such_struct"), 0u);
  CHECK_EQ(ckpt_struct_bytes(nullptr), 0u);
  char kind[8];
  OK(ckpt_library_kind(kind, sizeof kind));
  CHECK_EQ(std::string(kind), kHostLibrary ? "host" : "cuda");
  GIVES(CKPT_ERR_INVALID, ckpt_library_kind(kind, 0));
  GIVES(CKPT_ERR_INVALID, ckpt_library_kind(nullptr, 8));
}

TEST("the last error belongs to the thread and is cut to the caller's room") {
  GIVES(CKPT_ERR_HANDLE, ckpt_signal_raise(77, 0));
  const std::string here = last_error();
  CHECK(here.find("77") != std::string::npos);
  std::string elsewhere = "unset";
  Thread([&] { elsewhere = last_error(); }).join();
  CHECK_EQ(elsewhere, "");
  char text[5];
  OK(ckpt_last_error(text, sizeof text));
  CHECK_EQ(std::string(text), here.substr(0, 4));
}

TEST("setenv reaches getenv; names that are none are refused") {
  OK(ckpt_setenv("CKPT_TEST_SETTING", "32"));
  CHECK_EQ(std::string(getenv("CKPT_TEST_SETTING")), "32");
  GIVES(CKPT_ERR_INVALID, ckpt_setenv("A=B", "1"));
  GIVES(CKPT_ERR_INVALID, ckpt_setenv("", "1"));
  GIVES(CKPT_ERR_INVALID, ckpt_setenv(nullptr, "1"));
}

TEST("a second ckpt_init only checks the configuration") {
  ckpt_config config{kHostDevices, 0, kHostDeviceBytes, 0, 0};
  OK(ckpt_init(&config));
  config.host_devices = 1;
  GIVES(CKPT_ERR_STATE, ckpt_init(&config));
  GIVES(CKPT_ERR_INVALID, ckpt_init(nullptr));
  CHECK_EQ(run_child({"before-init"}).exit_status, 0);
}

TEST("stale, foreign and made-up handles are refused by every kind of object") {
  const uint32_t signal = new_signal();
  OK(ckpt_signal_destroy(signal));
  const uint32_t live = new_signal();
  uint32_t out = 0;
  uint64_t bytes = 0;
  int32_t fd = 0;
  ckpt_file_info info;
  ckpt_read_progress progress;
  for (uint32_t handle : {0u, signal, 0xffffffffu, live}) {
    if (handle != live) {
      GIVES(CKPT_ERR_HANDLE, ckpt_signal_destroy(handle));
      GIVES(CKPT_ERR_HANDLE, ckpt_signal_fd(handle, &fd));
      GIVES(CKPT_ERR_HANDLE, ckpt_signal_wait(handle, 0, &out));
    }
    GIVES(CKPT_ERR_HANDLE, ckpt_buffer_free(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_buffer_bytes(handle, &bytes));
    GIVES(CKPT_ERR_HANDLE, ckpt_buffer_map(handle, &out));
    GIVES(CKPT_ERR_HANDLE, ckpt_file_close(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_file_describe(handle, &info));
    GIVES(CKPT_ERR_HANDLE, ckpt_read_query(handle, &progress));
    GIVES(CKPT_ERR_HANDLE, ckpt_read_destroy(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_memory_free(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_stream_destroy(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_stream_sync(handle, 0, 0));
    GIVES(CKPT_ERR_HANDLE, ckpt_event_destroy(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_event_query(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_group_abort(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_group_destroy(handle));
    GIVES(CKPT_ERR_HANDLE, ckpt_refcounter_destroy(handle));
  }
  OK(ckpt_signal_destroy(live));
}

TEST("a handle is not used again soon, and live objects are counted") {
  uint32_t before = 0;
  OK(ckpt_live_objects(&before));
  const uint32_t first = new_signal();
  OK(ckpt_signal_destroy(first));
  for (int i = 0; i < 5000; i++) {
    const uint32_t signal = new_signal();
    CHECK(signal != first && signal != 0);
    GIVES(CKPT_ERR_HANDLE, ckpt_signal_raise(first, 0));
    uint32_t live = 0;
    OK(ckpt_live_objects(&live));
    CHECK_EQ(live, before + 1);
    OK(ckpt_signal_destroy(signal));
  }
}

TEST("an object can be destroyed while other threads use it") {
  for (int round = 0; round < 20; round++) {
    const uint32_t buffer = buffer_with(random_bytes(1 << 16, 3));
    std::atomic<int> started{0};
    std::atomic<bool> wrong{false};
    std::vector<Thread> threads;
    for (int i = 0; i < 3; i++) {
      threads.emplace_back([&] {
        uint8_t digest[32];
        for (;;) {
          const int32_t status = ckpt_buffer_sha256(buffer, 0, 1 << 16, digest);
          started++;
          if (status == CKPT_ERR_HANDLE) return;
          if (status != CKPT_OK) wrong = true;
        }
      });
    }
    while (started < 3) std::this_thread::yield();
    OK(ckpt_buffer_free(buffer));
    for (Thread& thread : threads) thread.join();
    CHECK(!wrong);
  }
}

TEST("signals: sticky bits, a readable fd, take and reset") {
  const uint32_t signal = new_signal();
  int32_t fd = -1;
  OK(ckpt_signal_fd(signal, &fd));
  const auto readable = [&] {
    pollfd item{fd, POLLIN, 0};
    return poll(&item, 1, 0) == 1;
  };
  CHECK(!readable());
  OK(ckpt_signal_raise(signal, CKPT_SIGNAL_HTTP));
  OK(ckpt_signal_raise(signal, CKPT_SIGNAL_USER));
  CHECK(readable());
  uint32_t bits = 0;
  OK(ckpt_signal_take(signal, &bits));
  CHECK_EQ(bits, static_cast<uint32_t>(CKPT_SIGNAL_HTTP | CKPT_SIGNAL_USER));
  CHECK(!readable());
  OK(ckpt_signal_raise(signal, 0));
  CHECK(readable());
  OK(ckpt_signal_wait(signal, 0, &bits));
  CHECK_EQ(bits, static_cast<uint32_t>(CKPT_SIGNAL_HTTP | CKPT_SIGNAL_USER));
  CHECK(!readable());
  OK(ckpt_signal_raise(signal, 0));
  OK(ckpt_signal_reset(signal));
  CHECK(!readable());
  OK(ckpt_signal_take(signal, &bits));
  CHECK_EQ(bits, 0u);
  OK(ckpt_signal_destroy(signal));
}

TEST("signal_wait: times out, is woken, is aborted and ends with its signal") {
  const uint32_t signal = new_signal();
  uint32_t bits = 99;
  const auto start = Clock::now();
  GIVES(CKPT_ERR_TIMEOUT, ckpt_signal_wait(signal, 30, &bits));
  CHECK(seconds_since(start) > 0.025);
  CHECK_EQ(bits, 99u);

  const auto later = [](const std::function<void()>& action) {
    return Thread([action] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      action();
    });
  };
  Thread raiser = later([&] { ckpt_signal_raise(signal, CKPT_SIGNAL_USER); });
  OK(ckpt_signal_wait(signal, 10000, &bits));
  CHECK_EQ(bits, static_cast<uint32_t>(CKPT_SIGNAL_USER));
  raiser.join();

  // An abort ends all waits, whoever drains the fd, and those that come later.
  std::atomic<int> aborted{0};
  std::vector<Thread> waiters;
  for (int i = 0; i < 4; i++) {
    waiters.emplace_back([&] {
      uint32_t unused;
      if (ckpt_signal_wait(signal, 10000, &unused) == CKPT_ERR_ABORTED) aborted++;
    });
  }
  raiser = later([&] { ckpt_signal_raise(signal, CKPT_SIGNAL_ABORT); });
  for (Thread& waiter : waiters) waiter.join();
  raiser.join();
  CHECK_EQ(aborted, 4);
  GIVES(CKPT_ERR_ABORTED, ckpt_signal_wait(signal, 10000, &bits));
  OK(ckpt_signal_reset(signal));

  Thread destroyer = later([&] { ckpt_signal_destroy(signal); });
  GIVES(CKPT_ERR_HANDLE, ckpt_signal_wait(signal, 10000, &bits));
  destroyer.join();
}

TEST("sha256: vectors of FIPS 180-4, with and without SHA instructions") {
  const auto digest_of = [](const std::string& text) {
    return sha256_of(std::vector<uint8_t>(text.begin(), text.end()));
  };
  for (bool portable : {false, true}) {
    ckpt::sha256_force_portable(portable);
    CHECK_EQ(digest_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK_EQ(digest_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_EQ(digest_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
             "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK_EQ(digest_of(std::string(1000000, 'a')),
             "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
  // Every way to cut a message gives one digest.
  const std::vector<uint8_t> bytes = random_bytes(300, 5);
  for (uint64_t length = 0; length <= bytes.size(); length++) {
    uint8_t digests[2][32];
    ckpt::sha256_force_portable(true);
    ckpt::Sha256 whole;
    whole.update(bytes.data(), length);
    whole.finish(digests[0]);
    ckpt::sha256_force_portable(false);
    ckpt::Sha256 cut;
    cut.update(bytes.data(), length / 3);
    cut.update(bytes.data() + length / 3, length - length / 3);
    cut.finish(digests[1]);
    CHECK(memcmp(digests[0], digests[1], 32) == 0);
  }
}

TEST("the reference counter file has torch's layout and goes with its handle") {
  uint32_t refcounter = 0;
  char name[64];
  OK(ckpt_refcounter_create(&refcounter, name, sizeof name));
  CHECK(strncmp(name, "/ckpt-", 6) == 0);
  const int fd = shm_open(name, O_RDONLY, 0);
  CHECK(fd >= 0);
  struct stat info;
  CHECK(fstat(fd, &info) == 0);
  CHECK_EQ(info.st_size, 64 + 10000 * 8);
  std::vector<int64_t> words(static_cast<size_t>(info.st_size) / 8);
  CHECK_EQ(read(fd, words.data(), static_cast<size_t>(info.st_size)), info.st_size);
  close(fd);
  CHECK_EQ(words[0], 1);
  for (size_t i = 1; i < 8; i++) CHECK_EQ(words[i], 0);
  for (size_t i = 8; i < words.size(); i++) CHECK_EQ(words[i], 1);
  OK(ckpt_refcounter_destroy(refcounter));
  CHECK(shm_open(name, O_RDONLY, 0) < 0);
  GIVES(CKPT_ERR_INVALID, ckpt_refcounter_create(&refcounter, name, 4));
}
