// Gathers: rows of several buffers, and of files' mappings, into one buffer.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "test.h"

using namespace test;

namespace {

using Piece = ckpt_gather_piece;
using Pieces = std::vector<Piece>;

int32_t gather(uint32_t to, const Pieces& pieces) {
  return ckpt_buffer_gather(to, pieces.data(), static_cast<uint32_t>(pieces.size()));
}

std::string buffer_sha256(uint32_t buffer) {
  uint64_t bytes = 0;
  uint8_t digest[32];
  OK(ckpt_buffer_bytes(buffer, &bytes));
  OK(ckpt_buffer_sha256(buffer, 0, bytes, digest));
  return hex(digest, sizeof digest);
}

void free_all(const std::vector<uint32_t>& buffers) {
  for (uint32_t buffer : buffers) OK(ckpt_buffer_free(buffer));
}

// What the piece makes of `bytes`, where `content` is its source's.
void apply(const Piece& piece, const std::vector<uint8_t>& content, std::vector<uint8_t>& bytes) {
  for (uint64_t row = 0; row < piece.height; row++) {
    memcpy(bytes.data() + piece.dst_offset + row * piece.dst_pitch,
           content.data() + piece.src_offset + row * piece.src_pitch, piece.width);
  }
}

// A leased file's mapping.
struct Mapped {
  explicit Mapped(const std::vector<uint8_t>& content) : source(content) {
    file = open_file(source.path());
    buffer = mapped_buffer(file);
  }
  ~Mapped() {
    ckpt_buffer_free(buffer);
    ckpt_file_close(file);
  }
  TempFile source;
  uint32_t file = 0;
  uint32_t buffer = 0;
};

}  // namespace

TEST("a gather brings rows of buffers and of a file together, and writes nothing beside them") {
  const std::vector<uint8_t> content = random_bytes(3'000'000, 1), other = random_bytes(70'000, 2),
                             before = random_bytes(4'000'003, 3);
  const Mapped mapped(content);
  const uint32_t first = buffer_with(content), second = buffer_with(other),
                 original = buffer_with(before), to = buffer_with(before);
  for (uint32_t from : {first, mapped.buffer}) {
    const Pieces pieces = {
        {from, 0, 17, 5, 384, 384, 384, 1},                        // one row
        {second, 0, 69'999, 4'000'002, 1, 1, 1, 1},                // the last byte of both
        {from, 0, 100, 1000, 640, 640, 640, 1500},                 // dense at both sides
        {from, 0, 3, 1'000'000, 1536, 192, 192, 1900},             // at the destination only
        {from, 0, 5, 1'400'000, 200, 700, 200, 900},               // at the source only
        {second, 0, 0, 2'100'000, 9, 13, 7, 7000},                 // at neither
        {from, 0, 1'000'000, 2'300'000, 0, 0, 1'600'000, 1},       // more than is read at once
        {from, 0, 2'999'999 - 99 * 1000 - 9, 3'900'000, 1000, 11,  // up to the last byte but one
         10, 100},
        {from, 0, 3'000'000, 4'000'003, 8, 8, 8, 0},    // nothing, where both end
        {from, 0, 0, 0, UINT64_MAX, 0, 0, UINT64_MAX},  //
        {from, 0, 0, 0, 0, 0, UINT64_MAX, 0},           //
        {second, 0, 500, 1100, 300, 250, 250, 40},      // over an earlier piece
        {second, 0, 0, 1200, 0, 0, 600, 1}};            // and over that one
    std::vector<uint8_t> expected = before;
    for (const Piece& piece : pieces) {
      if (piece.width > 0) apply(piece, piece.src_buffer == from ? content : other, expected);
    }
    OK(gather(to, {{original, 0, 0, 0, 0, 0, before.size(), 1}}));
    CHECK_EQ(buffer_sha256(to), sha256_of(before));
    OK(gather(to, pieces));
    CHECK_EQ(buffer_sha256(to), sha256_of(expected));
  }
  OK(ckpt_buffer_gather(to, nullptr, 0));
  free_all({first, second, original, to});
}

TEST("a gather checks every piece before it writes, and names the one that is wrong") {
  const uint64_t bytes = 100'000;
  const std::vector<uint8_t> before = random_bytes(bytes, 2);
  const uint32_t from = buffer_with(random_bytes(bytes, 1)), to = buffer_with(before);
  const Piece good{from, 0, bytes - 1100, bytes - 300, 1000, 200, 100, 2};  // ends where both end
  Pieces wrong;
  for (uint64_t Piece::* more : {&Piece::src_offset, &Piece::dst_offset, &Piece::src_pitch,
                                &Piece::dst_pitch, &Piece::width, &Piece::height}) {
    for (uint64_t value : {good.*more + 1, UINT64_MAX}) {
      wrong.push_back(good);
      wrong.back().*more = value;
    }
  }
  const uint64_t far = 1ull << 48;
  const Pieces others = {
      {from, 1, 0, 0, 1, 1, 1, 1},                // reserved
      {to, 0, 0, 50'000, 1, 1, 1, 1},             // its own source
      {from, 0, 0, 0, 99, 200, 100, 2},           // a pitch below the width
      {from, 0, 0, 0, 200, 99, 100, 2},           //
      {from, 0, 0, 0, 0, 0, 1, UINT64_MAX},       // would end never
      {from, 0, 0, 0, far, 1, 1, (1 << 16) + 1},  // 2^64 bytes from the first row to the last
      {from, 0, 0, 0, 1, far, 1, (1 << 16) + 1},  //
      {from, 0, 0, 0, UINT64_MAX, 5, 5, 2},       // 2^64 + 4
      {from, 0, 0, 0, 5, UINT64_MAX, 5, 2},       //
      {from, 0, 0, 0, 1ull << 32, 1ull << 32, 1ull << 32, 1ull << 32},
      {from, 0, bytes + 1, 0, 1, 1, 0, 0},
      {from, 0, 0, bytes + 1, 1, 1, 0, 0}};
  wrong.insert(wrong.end(), others.begin(), others.end());
  for (const Piece& piece : wrong) {
    GIVES(CKPT_ERR_INVALID, gather(to, {good, good, piece, good}));
    CHECK_EQ(last_error().substr(0, 9), "piece 2: ");
  }
  GIVES(CKPT_ERR_INVALID, gather(to, {good, {from, 0, bytes, 0, 1, 1, 1, 1}}));
  CHECK_EQ(last_error(),
           "piece 1: gather from a buffer: range 100000 + 1 is outside of 100000 bytes");
  GIVES(CKPT_ERR_INVALID, gather(to, {{from, 0, 0, 0, 10, 9, 10, 3}}));
  CHECK_EQ(last_error(), "piece 0: a destination pitch of 9 bytes for rows of 10");
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_gather(to, nullptr, 1));
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_gather(to, &good, UINT32_MAX));
  CHECK_EQ(buffer_sha256(to), sha256_of(before));
  OK(gather(to, {good}));
  free_all({from, to});
}

TEST("a gather refuses handles that are none, and a mapping to write to") {
  const std::vector<uint8_t> before = random_bytes(1000, 2);
  const Mapped mapped(random_bytes(1000, 3));
  const uint32_t from = buffer_with(random_bytes(1000, 1)), to = buffer_with(before),
                 stale = buffer_with(before), signal = new_signal();
  OK(ckpt_buffer_free(stale));
  const Piece good{from, 0, 0, 0, 1, 1, 1, 1};
  for (uint32_t handle : {0u, stale, signal, 0xffffffffu}) {
    GIVES(CKPT_ERR_HANDLE, gather(handle, {good}));
    GIVES(CKPT_ERR_HANDLE, gather(to, {good, {handle, 0, 0, 0, 1, 1, 1, 1}}));
    CHECK(last_error().find("piece 1: ") == 0);
    GIVES(CKPT_ERR_HANDLE, gather(to, {good, {handle, 0, 0, 0, 0, 0, 0, 0}}));
  }
  GIVES(CKPT_ERR_INVALID, gather(mapped.buffer, {good}));
  CHECK(last_error().find("read-only") != std::string::npos);
  CHECK_EQ(buffer_sha256(to), sha256_of(before));
  OK(ckpt_signal_destroy(signal));
  free_all({from, to});
}

TEST("a gather out of a file whose lease is broken gives CHANGED and writes nothing") {
  const std::vector<uint8_t> content = random_bytes(100'000, 1), before = random_bytes(1000, 2);
  for (const char* mode : {"write", "truncate"}) {
    const Mapped mapped(content);
    const uint32_t from = buffer_with(content), to = buffer_with(before);
    const Pieces pieces = {{from, 0, 0, 0, 1, 1, 10, 1}, {mapped.buffer, 0, 0, 0, 1, 1, 10, 1}};
    const ChildResult writer = run_child({mode, mapped.source.path()});
    CHECK_EQ(writer.exit_status, 0);
    CHECK(std::stod(writer.output) < 10);
    GIVES(CKPT_ERR_CHANGED, gather(to, pieces));
    CHECK(last_error().find(mapped.source.path()) != std::string::npos);
    CHECK_EQ(buffer_sha256(to), sha256_of(before));
    free_all({from, to});
  }
}

// The lease goes within the time of a chunk, not of the whole gather.
TEST("a lease that breaks while a gather reads the file ends the gather, not the process") {
  const std::vector<uint8_t> content = random_bytes(16 << 20, 1);
  const Mapped mapped(content);
  uint32_t to = 0;
  OK(ckpt_buffer_alloc(content.size(), 0, &to));
  const Pieces pieces(200, {mapped.buffer, 0, 0, 0, 4096, 4096, 4000, 4096});
  std::atomic<bool> started{false};
  int32_t status = CKPT_OK;
  Thread gathers([&] {
    for (int i = 0; i < 100 && status == CKPT_OK; i++) {
      status = gather(to, pieces);
      started = true;
    }
  });
  CHECK(eventually([&] { return started.load(); }));
  const ChildResult writer = run_child({"truncate", mapped.source.path()});
  gathers.join();
  CHECK_EQ(writer.exit_status, 0);
  CHECK(std::stod(writer.output) < 10);
  CHECK_EQ(status, static_cast<int32_t>(CKPT_ERR_CHANGED));
  OK(ckpt_buffer_free(to));
}

TEST("buffers can be freed while other threads gather out of them and into others") {
  const uint64_t bytes = 1 << 16;
  for (int round = 0; round < 20; round++) {
    const uint32_t from = buffer_with(random_bytes(bytes, 3));
    const Mapped mapped(random_bytes(bytes, 4));
    std::atomic<int> started{0};
    std::atomic<bool> wrong{false};
    std::vector<uint32_t> buffers;
    std::vector<Thread> threads;
    for (int i = 0; i < 3; i++) {
      buffers.push_back(buffer_with(std::vector<uint8_t>(bytes, 0)));
      const uint32_t to = buffers.back();
      threads.emplace_back([&, to] {
        for (;;) {
          const int32_t status = gather(to, {{from, 0, 0, 0, 64, 64, 60, 500},
                                             {mapped.buffer, 0, 0, 40'000, 64, 64, 60, 300}});
          started++;
          if (status == CKPT_ERR_HANDLE) return;
          if (status != CKPT_OK) wrong = true;
        }
      });
    }
    while (started < 3) std::this_thread::yield();
    OK(ckpt_buffer_free(buffers[0]));
    OK(ckpt_buffer_free(from));
    for (Thread& thread : threads) thread.join();
    CHECK(!wrong);
    free_all({buffers[1], buffers[2]});
  }
}

TEST("a gather of thousands of pieces out of a few buffers takes milliseconds") {
  const uint32_t count = 10'000, width = 384;
  const std::vector<uint8_t> content = random_bytes(uint64_t{count} * width, 1);
  const uint32_t sources[] = {buffer_with(content), buffer_with(content), buffer_with(content)};
  const uint32_t to = buffer_with(std::vector<uint8_t>(content.size(), 0));
  Pieces pieces;
  for (uint32_t i = 0; i < count; i++) {
    const uint64_t at = uint64_t{i} * width;
    pieces.push_back({sources[i % 3], 0, at, at, 0, 0, width, 1});
  }
  double best_seconds = 1;
  for (int i = 0; i < 10; i++) {
    const auto start = Clock::now();
    OK(gather(to, pieces));
    best_seconds = std::min(best_seconds, seconds_since(start));
  }
  CHECK_EQ(buffer_sha256(to), sha256_of(content));
  CHECK(best_seconds < 0.1);  // sanitizers and busy machines are slow
  free_all({sources[0], sources[1], sources[2], to});
}
