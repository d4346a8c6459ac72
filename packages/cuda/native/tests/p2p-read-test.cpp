// Reads of another process's memory into a buffer of this one.
#include <atomic>
#include <csignal>
#include <cstring>

#include "environment.h"
#include "p2p-owner.h"

using namespace test;

namespace {

constexpr uint64_t kSharedBytes = (9ull << 20) + 321;
constexpr uint64_t kBufferBytes = 20ull << 20;
constexpr const char* kWays[] = {"", "tcp", "posix,self", "posix,cma,self"};

std::string buffer_sha256(uint32_t buffer, uint64_t offset, uint64_t bytes) {
  uint8_t digest[32];
  OK(ckpt_buffer_sha256(buffer, offset, bytes, digest));
  return hex(digest, sizeof digest);
}

// Where a read goes, all 9 at first.
struct Target {
  uint32_t buffer = buffer_with(std::vector<uint8_t>(kBufferBytes, 9));
  uint32_t signal = new_signal();
  uint32_t read = 0;

  int32_t start(const std::vector<ckpt_p2p_piece>& pieces) {
    return ckpt_p2p_read_start(pieces.data(), static_cast<uint32_t>(pieces.size()), buffer, signal,
                               &read);
  }
  // What it ends with.
  int32_t end() {
    uint32_t bits = 0;
    OK(ckpt_signal_wait(signal, 20000, &bits));
    CHECK_EQ(bits, 0u);
    return ckpt_p2p_read_query(read);
  }
  int32_t destroy() {
    const int32_t status = ckpt_p2p_read_destroy(read);
    read = 0;
    return status;
  }
  std::string sha256(uint64_t offset = 0, uint64_t bytes = kBufferBytes) const {
    return buffer_sha256(buffer, offset, bytes);
  }
  void stays_as_it_is() const {
    const std::string before = sha256();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CHECK_EQ(sha256(), before);
  }
  ~Target() {
    if (read != 0) ckpt_p2p_read_destroy(read);
    ckpt_signal_destroy(signal);
    ckpt_buffer_free(buffer);
  }
};

// Two whole copies of what is shared.
std::vector<ckpt_p2p_piece> two_of(uint32_t first, uint32_t second) {
  return {{first, 0, 0, 0, kSharedBytes}, {second, 0, 0, kSharedBytes, kSharedBytes}};
}

bool reads_alone(uint32_t peer) {
  char text[64];
  OK(ckpt_p2p_transport(peer, text, sizeof text));
  return strcmp(text, "rdma") == 0 || strcmp(text, "cma") == 0;
}

}  // namespace

TEST("p2p read: every byte of many pieces, at odd offsets") {
  const std::vector<uint8_t> content = random_bytes(kSharedBytes, kOwnerSeed);
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const Owner owner(kSharedBytes);
    const Reader reader(owner);
    Target to;
    std::vector<uint8_t> expected(kBufferBytes, 9);
    std::vector<ckpt_p2p_piece> pieces{{reader.remote, 0, kSharedBytes, kBufferBytes, 0}};
    uint64_t at = 5, from = 3;
    std::vector<uint64_t> sizes{1, 7, 0, 65537, 4194304, 4194305};
    sizes.insert(sizes.end(), 30, 100003);  // far more than are under way at a time
    for (uint64_t bytes : sizes) {
      pieces.push_back({reader.remote, 0, from, at, bytes});
      memcpy(expected.data() + at, content.data() + from, bytes);
      at += bytes + 11;
      from += 1001;
    }
    OK(to.start(pieces));
    OK(to.end());
    CHECK_EQ(to.sha256(), sha256_of(expected));
    OK(to.destroy());
    OK(to.start({}));
    OK(to.end());
    OK(to.destroy());
    uint8_t key[65536];
    uint32_t key_bytes = 0;
    OK(ckpt_p2p_share(reader.p2p, to.buffer, key, sizeof key, &key_bytes));
    OK(to.start({{reader.remote, 0, 0, 1, kSharedBytes}}));
    OK(ckpt_p2p_unshare(reader.p2p, to.buffer));
    OK(to.end());
    CHECK_EQ(to.sha256(1, kSharedBytes), sha256_of(content));
  }
}

TEST("p2p read: ranges and handles are refused, and then nothing is read") {
  const Owner owner(kSharedBytes);
  const Reader reader(owner);
  Target to;
  const auto gives = [&](int32_t status, const ckpt_p2p_piece& piece) {
    GIVES(status, to.start({{reader.remote, 0, 0, 0, 100}, piece}));
  };
  gives(CKPT_ERR_INVALID, {reader.remote, 0, kSharedBytes, 0, 1});
  gives(CKPT_ERR_INVALID, {reader.remote, 0, 0, kBufferBytes, 1});
  gives(CKPT_ERR_INVALID, {reader.remote, 0, UINT64_MAX, 0, 2});
  gives(CKPT_ERR_INVALID, {reader.remote, 0, kSharedBytes + 1, 0, 0});
  gives(CKPT_ERR_HANDLE, {reader.peer, 0, 0, 0, 1});
  const ckpt_p2p_piece piece{reader.remote, 0, 0, 0, 100};
  GIVES(CKPT_ERR_INVALID, ckpt_p2p_read_start(nullptr, 1, to.buffer, 0, &to.read));
  GIVES(CKPT_ERR_INVALID, ckpt_p2p_read_start(&piece, 1, to.buffer, 0, nullptr));
  GIVES(CKPT_ERR_HANDLE, ckpt_p2p_read_start(&piece, 1, to.signal, 0, &to.read));
  GIVES(CKPT_ERR_HANDLE, ckpt_p2p_read_start(&piece, 1, to.buffer, to.buffer, &to.read));
  GIVES(CKPT_ERR_HANDLE, ckpt_p2p_read_query(reader.remote));
  const TempFile file(random_bytes(4096, 1));
  const uint32_t opened = open_file(file.path()), mapped = mapped_buffer(opened);
  GIVES(CKPT_ERR_INVALID, ckpt_p2p_read_start(&piece, 1, mapped, 0, &to.read));
  OK(ckpt_buffer_free(mapped));
  OK(ckpt_file_close(opened));
  CHECK_EQ(to.sha256(), sha256_of(std::vector<uint8_t>(kBufferBytes, 9)));
}

TEST("p2p read: peers of one side or of two are read at the same time") {
  const std::string content = sha256_of(random_bytes(kSharedBytes, kOwnerSeed));
  for (const char* way : {"tcp", "posix,self"}) {
    const Environment setting("UCX_TLS", way);
    const Owner first(kSharedBytes), second(kSharedBytes);
    const Reader one(first), two(second);
    const Attached same(one.p2p, second);
    for (const uint32_t other : {two.remote, same.remote}) {
      Target to;
      first.signal(SIGSTOP);
      OK(to.start(two_of(one.remote, other)));
      // What the second has comes meanwhile: it is not needed any more.
      std::this_thread::sleep_for(std::chrono::seconds(1));
      GIVES(CKPT_NOT_READY, ckpt_p2p_read_query(to.read));
      second.signal(SIGSTOP);
      first.signal(SIGCONT);
      OK(to.end());
      second.signal(SIGCONT);
      CHECK_EQ(to.sha256(0, kSharedBytes), content);
      CHECK_EQ(to.sha256(kSharedBytes, kSharedBytes), content);
    }
  }
}

TEST("p2p read: what it reads and where to may be let go of while it runs") {
  const Environment setting("UCX_TLS", "tcp");
  const Owner owner(kSharedBytes);
  Reader reader(owner);
  Target to;
  owner.signal(SIGSTOP);
  OK(to.start(two_of(reader.remote, reader.remote)));
  OK(ckpt_p2p_detach(reader.remote));
  OK(ckpt_buffer_free(to.buffer));
  owner.signal(SIGCONT);
  OK(to.end());
  OK(to.destroy());
}

TEST("p2p read: disconnecting or closing ends it, and nothing is written afterwards") {
  for (const char* way : kWays) {
    for (const bool close : {false, true}) {
      const Environment setting("UCX_TLS", way);
      const Owner stopped(kSharedBytes), other(kSharedBytes);
      const Reader reader(stopped);
      const Attached second(reader.p2p, other);
      if (reads_alone(reader.peer)) continue;
      Target to;
      stopped.signal(SIGSTOP);
      OK(to.start(two_of(reader.remote, second.remote)));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      GIVES(CKPT_NOT_READY, ckpt_p2p_read_query(to.read));
      const auto start = Clock::now();
      Thread ends([&] { close ? ckpt_p2p_close(reader.p2p) : ckpt_p2p_disconnect(reader.peer); });
      GIVES(CKPT_ERR_ABORTED, to.end());
      CHECK(seconds_since(start) < 2);
      CHECK(last_error().rfind("read from a peer: ", 0) == 0);
      stopped.signal(SIGCONT);
      to.stays_as_it_is();
      OK(to.destroy());
      ends.join();
      OK(to.start(two_of(second.remote, reader.remote)));
      GIVES(CKPT_ERR_ABORTED, to.end());
    }
  }
}

TEST("p2p read: disconnecting amid what comes ends it at once, and nothing is written afterwards") {
  for (const char* way : {"tcp", "posix,self"}) {
    const Environment setting("UCX_TLS", way);
    const Owner owner(kSharedBytes);
    for (uint32_t wait_us : {0u, 300u, 1000u, 3000u, 5000u}) {
      const Reader reader(owner);
      Target to;
      OK(to.start(two_of(reader.remote, reader.remote)));
      std::this_thread::sleep_for(std::chrono::microseconds(wait_us));
      if (wait_us % 1000 == 0) owner.signal(SIGSTOP);
      OK(ckpt_p2p_disconnect(reader.peer));
      const int32_t status = to.end();
      CHECK(status == CKPT_ERR_ABORTED || status == CKPT_OK);
      owner.signal(SIGCONT);
      to.stays_as_it_is();
    }
  }
}

// Over shared memory of one peer only: what others send waits behind what a killed one has begun to
// write, until they are disconnected (UCX's queue is one for all).
TEST("p2p read: a peer that is killed amid what it sends ends it with an error") {
  for (const char* way : {"tcp", "posix,self"}) {
    for (uint32_t wait_us : {0u, 2000u, 4000u}) {
      const Environment setting("UCX_TLS", way);
      Owner owner(kSharedBytes);
      const Owner other(kSharedBytes);
      const Reader reader(owner);
      const Attached second(reader.p2p, other);
      Target to;
      const bool both = strcmp(way, "tcp") == 0;
      OK(to.start(two_of(reader.remote, both ? second.remote : reader.remote)));
      std::this_thread::sleep_for(std::chrono::microseconds(wait_us));
      owner.kill_and_wait();
      const int32_t status = to.end();
      CHECK(status == CKPT_ERR_IO || status == CKPT_OK);
      to.stays_as_it_is();
    }
  }
}

TEST("p2p read: destroying waits for what is under way") {
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const Owner owner(kSharedBytes);
    const Reader reader(owner);
    Target to;
    OK(to.start(two_of(reader.remote, reader.remote)));
    OK(to.destroy());
    to.stays_as_it_is();
    uint32_t bits = 0;
    OK(ckpt_signal_wait(to.signal, 20000, &bits));
    if (reads_alone(reader.peer)) continue;
    owner.signal(SIGSTOP);
    OK(to.start(two_of(reader.remote, reader.remote)));
    std::atomic<bool> destroyed{false};
    Thread destroys([&] {
      to.destroy();
      destroyed = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK(!destroyed);
    OK(ckpt_p2p_disconnect(reader.peer));
    CHECK(eventually([&] { return destroyed.load(); }));
  }
}
