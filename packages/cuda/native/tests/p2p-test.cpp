// Reads of another process's memory.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <thread>

#include "common/p2p-frames.h"
#include "common/p2p-server.h"
#include "environment.h"
#include "p2p-owner.h"

using namespace test;

namespace {

constexpr uint64_t kSharedBytes = (24ull << 20) + 321;
constexpr uint64_t kMemoryBytes = 32ull << 20;
constexpr const char* kWays[] = {"", "tcp", "posix,self", "posix,cma,self"};

struct Target {
  uint32_t stream = new_stream(0), memory = new_memory(kMemoryBytes, 0);
  ~Target() {
    ckpt_stream_destroy(stream);
    ckpt_memory_free(memory);
  }
};

// Starts copies of so many bytes each of `remote`, which holds `content`. Returns what the memory
// holds when they are done.
std::vector<uint8_t> copy_odd_ranges(const Target& to, uint32_t remote,
                                     const std::vector<uint8_t>& content,
                                     std::initializer_list<uint64_t> sizes) {
  std::vector<uint8_t> expected(kMemoryBytes, 9);
  OK(ckpt_memory_fill(to.memory, 0, kMemoryBytes, 9));
  uint64_t at = 5, from = 3;
  for (uint64_t bytes : sizes) {
    OK(ckpt_copy_remote(to.stream, to.memory, at, remote, from, bytes));
    memcpy(expected.data() + at, content.data() + from, bytes);
    at += bytes + 11;
    from += 1001;
  }
  return expected;
}

std::string transport_of(uint32_t peer) {
  char text[65536];
  OK(ckpt_p2p_transport(peer, text, sizeof text));
  return text;
}

}  // namespace

TEST("p2p: every byte of a peer's buffer, of many sizes and at odd offsets") {
  const std::vector<uint8_t> content = random_bytes(kSharedBytes, kOwnerSeed);
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const Owner owner(kSharedBytes);
    const Reader reader(owner);
    const Target to;
    const std::vector<uint8_t> expected =
        copy_odd_ranges(to, reader.remote, content,
                        {1, 7, 4096, 65537, 1048573, 4194305, 20971521});
    OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, kSharedBytes, 0));
    OK(ckpt_stream_sync(to.stream, 0, 60000));
    CHECK_EQ(memory_sha256(to.memory, 0, kMemoryBytes), sha256_of(expected));
    printf("      \"%s\": %s\n", way, transport_of(reader.peer).c_str());
    const auto refused = [&](uint64_t offset, uint64_t from_offset, uint64_t bytes) {
      GIVES(CKPT_ERR_INVALID, ckpt_copy_remote(to.stream, to.memory, offset, reader.remote,
                                               from_offset, bytes));
    };
    refused(0, kSharedBytes, 1);
    refused(kMemoryBytes, 0, 1);
    refused(0, UINT64_MAX, 2);
  }
}

TEST("p2p: a peer that stands still is needed as its transport says") {
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const Owner owner(kSharedBytes);
    const Reader reader(owner);
    const Target to;
    OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, 4096));
    OK(ckpt_stream_sync(to.stream, 0, 20000));
    const std::string transport = transport_of(reader.peer);
    const bool alone = transport == "rdma" || transport == "cma";
    CHECK(alone || transport == "shm" || transport == "emulated");
    owner.signal(SIGSTOP);
    OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, kSharedBytes));
    GIVES(alone ? CKPT_OK : CKPT_ERR_TIMEOUT, ckpt_stream_sync(to.stream, 0, 500));
    owner.signal(SIGCONT);
    OK(ckpt_stream_sync(to.stream, 0, 20000));
    CHECK_EQ(memory_sha256(to.memory, 0, kSharedBytes),
             sha256_of(random_bytes(kSharedBytes, kOwnerSeed)));
  }
}

TEST("p2p: reads from a peer that is killed end with an error, and so do later ones") {
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    Owner owner(kSharedBytes);
    const Reader reader(owner);
    const Target to;
    OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, 4096));
    OK(ckpt_stream_sync(to.stream, 0, 20000));
    owner.signal(SIGSTOP);
    for (uint32_t i = 0; i < 10; i++)
      OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, kSharedBytes));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    owner.kill_and_wait();
    const auto start = Clock::now();
    GIVES(CKPT_ERR_IO, ckpt_stream_sync(to.stream, 0, 20000));
    const double seconds = seconds_since(start);
    printf("      \"%s\": ended after %.2f s: %s\n", way, seconds, last_error().c_str());
    CHECK(seconds < 5);
    OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, 1));
    GIVES(CKPT_ERR_IO, ckpt_stream_sync(to.stream, 0, 20000));
  }
}

TEST("p2p: disconnecting and closing end a read from another thread, at once") {
  for (const char* way : {"", "tcp"}) {
    for (const bool close : {false, true}) {
      const Environment setting("UCX_TLS", way);
      const Owner owner(kSharedBytes);
      Reader reader(owner);
      const Target to;
      owner.signal(SIGSTOP);
      for (uint32_t i = 0; i < 4; i++)
        OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, kSharedBytes));
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const auto start = Clock::now();
      OK(close ? ckpt_p2p_close(reader.p2p) : ckpt_p2p_disconnect(reader.peer));
      GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(to.stream, 0, 20000));
      CHECK(seconds_since(start) < 2);
      OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, 1));
      GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(to.stream, 0, 20000));
    }
  }
}

TEST("p2p: an owner does not mind readers that leave or are killed amid reads") {
  for (const char* way : {"tcp", "", "posix,self"}) {
    const Environment setting("UCX_TLS", way);
    Owner owner(kSharedBytes);
    const std::string address = hex(owner.address().data(), owner.address().size());
    const std::string key = hex(owner.key().data(), owner.key().size());
    for (uint32_t turn = 0; turn < 3; turn++) {
      CHECK_EQ(run_child({"read", address, key}).exit_status, -1);
      const Target to;
      Reader reader(owner);
      for (uint32_t i = 0; i < 50; i++)
        OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, 0, kSharedBytes));
      GIVES(CKPT_ERR_TIMEOUT, ckpt_stream_sync(to.stream, 0, 50));
      OK(ckpt_p2p_disconnect(reader.peer));
      GIVES(CKPT_ERR_ABORTED, ckpt_stream_sync(to.stream, 0, 20000));
    }
    owner.end();
  }
}

TEST("p2p: an owner answers readers that come when others have left, or are gone") {
  for (const char* way : {"tcp", ""}) {
    const Environment setting("UCX_TLS", way);
    const Owner owner(kSharedBytes);
    const std::string address = hex(owner.address().data(), owner.address().size());
    const std::string key = hex(owner.key().data(), owner.key().size());
    const Opened opened;
    const auto read_and_leave = [&] {
      const Target to;
      const Attached attached(opened.p2p, owner);
      OK(ckpt_copy_remote(to.stream, to.memory, 0, attached.remote, 0, 4096));
      OK(ckpt_stream_sync(to.stream, 0, 20000));
    };
    for (uint32_t turn = 0; turn < 8; turn++) read_and_leave();
    for (uint32_t turn = 0; turn < 3; turn++)
      CHECK_EQ(run_child({"read", address, key}).exit_status, -1);
    read_and_leave();
  }
}

TEST("p2p: one process may be owner and receiver, and several may read") {
  const uint32_t p2p = open_p2p(), other = open_p2p();
  const std::vector<uint8_t> content = random_bytes(1 << 20, 3);
  const uint32_t buffer = buffer_with(content);
  std::vector<uint8_t> address(65536), key(65536);
  uint32_t address_bytes = 0, key_bytes = 0;
  OK(ckpt_p2p_address(p2p, address.data(), 65536, &address_bytes));
  GIVES(CKPT_ERR_INVALID, ckpt_p2p_share(p2p, buffer, key.data(), 8, &key_bytes));
  OK(ckpt_p2p_share(p2p, buffer, key.data(), 65536, &key_bytes));
  GIVES(CKPT_ERR_STATE, ckpt_p2p_share(p2p, buffer, key.data(), 65536, &key_bytes));
  for (const uint32_t from : {p2p, other}) {
    uint32_t peer = 0, remote = 0;
    const Target to;
    OK(ckpt_p2p_connect(from, address.data(), address_bytes, &peer));
    OK(ckpt_p2p_attach(peer, key.data(), key_bytes, &remote));
    OK(ckpt_copy_remote(to.stream, to.memory, 0, remote, 0, 1 << 20));
    OK(ckpt_p2p_detach(remote));
    OK(ckpt_stream_sync(to.stream, 0, 20000));
    CHECK_EQ(memory_sha256(to.memory, 0, 1 << 20), sha256_of(content));
    OK(ckpt_p2p_disconnect(peer));
  }
  OK(ckpt_p2p_unshare(p2p, buffer));
  GIVES(CKPT_ERR_STATE, ckpt_p2p_unshare(p2p, buffer));
  OK(ckpt_buffer_free(buffer));
  for (const uint32_t one : {p2p, other}) OK(ckpt_p2p_close(one));
}

namespace {

// A file in place that a process shares with itself.
struct SharedFile {
  explicit SharedFile(const std::vector<uint8_t>& content)
      : file(content), opened(open_file(file.path())), buffer(mapped_buffer(opened)) {
    uint32_t address_bytes = 0, key_bytes = 0;
    OK(ckpt_p2p_share(owner.p2p, buffer, key.data(), 65536, &key_bytes));
    OK(ckpt_p2p_address(owner.p2p, address.data(), 65536, &address_bytes));
    address.resize(address_bytes);
    key.resize(key_bytes);
    attached.emplace(reader.p2p, address, key);
  }
  ~SharedFile() {
    attached.reset();  // before what it reads is gone
    ckpt_p2p_unshare(owner.p2p, buffer);
    ckpt_buffer_free(buffer);
    ckpt_file_close(opened);
  }
  // Like a writer that waits until nobody reads.
  void write() const {
    const int fd = open(file.path().c_str(), O_WRONLY);
    CHECK(fd >= 0);
    CHECK(ftruncate(fd, 0) == 0);
    close(fd);
  }

  const Opened owner, reader;
  const TempFile file;
  uint32_t opened, buffer;
  std::vector<uint8_t> address = std::vector<uint8_t>(65536), key = std::vector<uint8_t>(65536);
  std::optional<Attached> attached;
};

// One that asks for the file again and again, and then stands still: it takes nothing of what it is sent.
class StillReader {
 public:
  explicit StillReader(const SharedFile& shared) {
    worker_.set_step([this] { return stand_still(), false; });
    peer_ = worker_.connect(
        ckpt::read_address(shared.address.data(), static_cast<uint32_t>(shared.address.size())));
    std::vector<uint8_t> greeting(sizeof(ckpt::ReaderMessage));
    const ckpt::ReaderMessage head{kNumber};
    memcpy(greeting.data(), &head, sizeof head);
    greeting.insert(greeting.end(), worker_.address().begin(), worker_.address().end());
    send(ckpt::kReaderTag, greeting);
    const uint32_t key_bytes = static_cast<uint32_t>(shared.key.size());
    const uint64_t address = ckpt::read_key(shared.key.data(), key_bytes).address;
    for (uint64_t i = 0; i < kReads; i++) {
      const ckpt::ReadMessage message{kNumber, i, address, 4ull << 20};
      const auto* bytes = reinterpret_cast<const uint8_t*>(&message);
      send(ckpt::kReadTag, {bytes, bytes + sizeof message});
    }
    asked_ = true;
    CHECK(eventually([this] { return still_.load(); }));
  }
  ~StillReader() { ended_ = true; }

 private:
  static constexpr uint64_t kNumber = 1, kReads = 64;

  void send(uint64_t tag, const std::vector<uint8_t>& message) {
    const auto kept = std::make_shared<const std::vector<uint8_t>>(message);
    sent_.push_back(worker_.send(peer_, "ask", [&](const ckpt::Ucx::RequestParams& params) {
      return ckpt::Ucx::get().tag_send_nbx(peer_->endpoint, kept->data(), kept->size(), tag,
                                           &params);
    }));
    sent_.back()->keeps = kept;
  }
  // By the worker's thread, which then does nothing else.
  void stand_still() {
    if (!asked_) return;
    for (const auto& sent : sent_) {
      if (!sent->completion.done()) return;
    }
    still_ = true;
    while (!ended_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  std::atomic<bool> asked_{false}, still_{false}, ended_{false};
  std::vector<ckpt::UcxWorker::Pending> sent_;
  ckpt::UcxWorker::Peer* peer_ = nullptr;
  ckpt::UcxWorker worker_{ckpt::Ucx::Params::kFeatureRma | ckpt::Ucx::Params::kFeatureTag,
                          {{"RNDV_THRESH", "inf"}}};
};

}  // namespace

TEST("p2p: every byte of a file in place, also when it is unlinked meanwhile") {
  const std::vector<uint8_t> content = random_bytes(kSharedBytes, 5);
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const SharedFile shared(content);
    const Target to;
    const std::vector<uint8_t> expected =
        copy_odd_ranges(to, shared.attached->remote, content,
                        {1, 1023, 1024, 1025, 1026, 65537, 20971521});
    unlink(shared.file.path().c_str());
    OK(ckpt_stream_sync(to.stream, 0, 60000));
    CHECK_EQ(memory_sha256(to.memory, 0, kMemoryBytes), sha256_of(expected));
  }
}

TEST("p2p: readers that stand still do not keep another one from a file in place") {
  const std::vector<uint8_t> content = random_bytes(kSharedBytes, 5);
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const SharedFile shared(content);
    const Target to;
    const StillReader still(shared);
    OK(ckpt_copy_remote(to.stream, to.memory, 0, shared.attached->remote, 0, kSharedBytes));
    const int32_t status = ckpt_stream_sync(to.stream, 0, 10000);
    // the stream's end waits for the read
    if (status != CKPT_OK) ckpt_p2p_disconnect(shared.attached->peer);
    GIVES(CKPT_OK, status);
    CHECK_EQ(memory_sha256(to.memory, 0, kSharedBytes), sha256_of(content));
  }
}

TEST("p2p: reads of a file that somebody writes to end with its name, of whatever size they are") {
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const SharedFile shared(random_bytes(kSharedBytes, 6));
    const uint32_t memory = new_memory(kMemoryBytes, 0);
    const auto read = [&](uint64_t bytes) {
      const uint32_t stream = new_stream(0);
      OK(ckpt_copy_remote(stream, memory, 0, shared.attached->remote, 0, bytes));
      const int32_t status = ckpt_stream_sync(stream, 0, 20000);
      OK(ckpt_stream_destroy(stream));
      return status;
    };
    OK(read(kSharedBytes));
    // amid reads, which go on until they have seen it
    std::atomic<bool> written{false};
    Thread writes([&] {
      shared.write();
      written = true;
    });
    CHECK(eventually([&] { return read(kSharedBytes) == CKPT_ERR_CHANGED; }));
    writes.join();
    CHECK(written);
    for (uint64_t bytes : {1ull, 1024ull, 1025ull, 100000ull}) {
      GIVES(CKPT_ERR_CHANGED, read(bytes));
      CHECK(last_error().find(shared.file.path()) != std::string::npos);
    }
    OK(ckpt_memory_free(memory));
  }
}

TEST("p2p: what is no address or no key is refused") {
  const uint32_t p2p = open_p2p();
  const Owner owner(4096);
  uint32_t peer = 0, remote = 0;
  std::vector<uint8_t> address = owner.address(), key = owner.key();
  const auto length = [](const std::vector<uint8_t>& of) {
    return static_cast<uint32_t>(of.size());
  };
  const auto connect = [&](uint32_t bytes) {
    return ckpt_p2p_connect(p2p, address.data(), bytes, &peer);
  };
  for (uint32_t bytes : {0u, 3u, 20u, length(address) - 1}) GIVES(CKPT_ERR_INVALID, connect(bytes));
  address[40] ^= 1;
  GIVES(CKPT_ERR_INVALID, connect(length(address)));
  address[40] ^= 1;
  OK(connect(length(address)));
  key[12] ^= 1;
  GIVES(CKPT_ERR_INVALID, ckpt_p2p_attach(peer, key.data(), length(key), &remote));
  GIVES(CKPT_ERR_INVALID, ckpt_p2p_attach(peer, address.data(), length(address), &remote));
  GIVES(CKPT_ERR_HANDLE, ckpt_p2p_attach(p2p, key.data(), length(key), &remote));
  OK(ckpt_p2p_disconnect(peer));
  OK(ckpt_p2p_close(p2p));
}

TEST("p2p: the text of a connection names how it reads") {
  const auto lane = [](const char* name, const char* use) {
    return std::string("#   lane[0]:  4:") + name + "/x.0 md[3]  -> md[3]/y/sysdev[255] " + use +
           "\n";
  };
  const auto is = [](const std::string& text, const char* name) {
    CHECK_EQ(ckpt::transport_of(text), name);
  };
  is("", "");
  is(lane("tcp", "am am_bw#0 wireup"), "emulated");
  is(lane("posix", "am am_bw#0") + lane("tcp", "wireup"), "shm");
  is(lane("posix", "am am_bw#0") + lane("cma", "rma_bw#0"), "cma");
  is(lane("ud_verbs", "am am_bw#0 wireup"), "emulated");
  is(lane("tcp", "am am_bw#0") + lane("rc_mlx5", "rma_bw#0"), "rdma");
}
