// Two-dimensional copies: rows of a buffer into rows of device memory.
#include <fcntl.h>

#include <cstring>

#include "common/backend.h"
#include "test.h"

using namespace test;

namespace {

using Rows = ckpt::CopyRows;

int32_t copy_rows(uint32_t stream, uint32_t memory, uint32_t buffer, const Rows& rows) {
  return ckpt_copy_h2d_2d(stream, memory, rows.to_offset, rows.to_pitch, buffer, rows.from_offset,
                          rows.from_pitch, rows.width, rows.height);
}

// What the copy leaves in memory that held `before`.
std::vector<uint8_t> with_rows(std::vector<uint8_t> before, const std::vector<uint8_t>& content,
                               const Rows& rows) {
  for (uint64_t row = 0; row < rows.height; row++) {
    memcpy(before.data() + rows.to_offset + row * rows.to_pitch,
           content.data() + rows.from_offset + row * rows.from_pitch, rows.width);
  }
  return before;
}

}  // namespace

TEST("rows go from one pitch to another, and nothing goes beside them") {
  const std::vector<uint8_t> content = random_bytes(5'000'000, 1);
  const uint64_t bytes = 4'000'003;
  const uint32_t buffer = buffer_with(content), memory = new_memory(bytes), stream = new_stream();
  const Rows cases[] = {
      {0, 192, 0, 384, 192, 10'000},              // a part of each row
      {0, 192, 1, 1536, 192, 3'000},              //
      {7, 3000, 5, 1000, 1000, 1'300},            // into a part of each row
      {3, 1025, 11, 2049, 513, 2'000},            // both
      {0, 1, 0, 3, 1, 1'000},                     // the shortest rows
      {5, 9, 6, 7, 7, 100'000},                   // dense at one side
      {1, 4096, 2, 4096, 4096, 900},              // dense at both
      {10, 1, 20, 1, 1, 1},                       // one byte
      {9, 1'300'000, 9, 1'600'000, 1'300'000, 3}  // rows that are longer than what is copied at once
  };
  for (const Rows& rows : cases) {
    OK(ckpt_memory_fill(memory, 0, bytes, 0xab));
    OK(copy_rows(stream, memory, buffer, rows));
    OK(ckpt_stream_sync(stream, 0, 10000));
    CHECK_EQ(memory_sha256(memory, 0, bytes),
             sha256_of(with_rows(std::vector<uint8_t>(bytes, 0xab), content, rows)));
  }
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
}

TEST("rows are copied in the stream's order, and up to the last byte of both sides") {
  const uint64_t bytes = 1 << 20;
  const std::vector<uint8_t> content = random_bytes(bytes, 1);
  const uint32_t buffer = buffer_with(content), memory = new_memory(bytes), stream = new_stream();
  const Rows last{bytes - 99 * 4000 - 500, 4000, bytes - 99 * 1000 - 500, 1000, 500, 100};
  OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, bytes));
  OK(copy_rows(stream, memory, buffer, last));
  OK(ckpt_copy_h2d(stream, memory, last.to_offset + 100, buffer, 3, 10'000));
  OK(ckpt_stream_sync(stream, 0, 10000));
  std::vector<uint8_t> expected = with_rows(content, content, last);
  memcpy(expected.data() + last.to_offset + 100, content.data() + 3, 10'000);
  CHECK_EQ(memory_sha256(memory, 0, bytes), sha256_of(expected));
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
}

TEST("rows: handles, pitches and ranges are checked, and rows of nothing copy nothing") {
  const uint64_t bytes = 1 << 20;
  const uint32_t buffer = buffer_with(random_bytes(bytes, 1)), memory = new_memory(bytes),
                 stream = new_stream();
  OK(ckpt_memory_fill(memory, 0, bytes, 0xab));
  const Rows good{bytes - 1100, 1000, bytes - 300, 200, 100, 2};  // ends where both end
  GIVES(CKPT_ERR_HANDLE, copy_rows(memory, memory, buffer, good));
  GIVES(CKPT_ERR_HANDLE, copy_rows(stream, buffer, buffer, good));
  GIVES(CKPT_ERR_HANDLE, copy_rows(stream, memory, memory, good));
  for (uint64_t Rows::* more : {&Rows::to_offset, &Rows::to_pitch, &Rows::from_offset,
                                &Rows::from_pitch, &Rows::width, &Rows::height}) {
    Rows outside = good;
    outside.*more += 1;
    GIVES(CKPT_ERR_INVALID, copy_rows(stream, memory, buffer, outside));
    outside.*more = UINT64_MAX;
    GIVES(CKPT_ERR_INVALID, copy_rows(stream, memory, buffer, outside));
  }
  const Rows refused[] = {
      {0, 99, 0, 200, 100, 2},  // a pitch below the width
      {0, 200, 0, 99, 100, 2},
      {0, 99, 0, 99, 100, 0},
      {0, 1ull << 48, 0, 1, 1, (1 << 16) + 1},  // 2^64 bytes from the first row to the last
      {0, 1, 0, 1ull << 48, 1, (1 << 16) + 1},
      {0, UINT64_MAX, 0, 5, 5, 2},  // 2^64 + 4
      {0, 5, 0, UINT64_MAX, 5, 2},
      {bytes + 1, 1, 0, 1, 0, 0},
      {0, 1, bytes + 1, 1, 0, 0}};
  for (const Rows& rows : refused) {
    GIVES(CKPT_ERR_INVALID, copy_rows(stream, memory, buffer, rows));
  }
  const uint64_t max = UINT64_MAX;
  for (const Rows& rows : {Rows{bytes, 100, bytes, 100, 100, 0}, Rows{bytes, 0, bytes, 0, 0, 5},
                           Rows{0, max, 0, max, 0, max}, Rows{0, max, 0, max, max, 0}}) {
    OK(copy_rows(stream, memory, buffer, rows));
  }
  OK(ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, bytes), sha256_of(std::vector<uint8_t>(bytes, 0xab)));
  OK(copy_rows(stream, memory, buffer, good));
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
}

TEST("rows of a file's mapping: CHANGED when its lease is broken, and that stays with the stream") {
  const std::vector<uint8_t> content = random_bytes(100'000, 1);
  TempFile source(content);
  const uint32_t file = open_file(source.path());
  const uint32_t mapped = mapped_buffer(file);
  const uint32_t pinned = buffer_with(content), memory = new_memory(50'000), stream = new_stream(),
                 event = new_event();
  const Rows rows{0, 500, 300, 1000, 500, 99};
  const std::vector<uint8_t> empty(50'000, 0);
  const std::string expected = sha256_of(with_rows(empty, content, rows));
  OK(ckpt_memory_fill(memory, 0, 50'000, 0));
  OK(copy_rows(stream, memory, mapped, rows));
  OK(ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, 50'000), expected);

  CHECK_EQ(run_child({"write", source.path()}).exit_status, 0);
  OK(ckpt_memory_fill(memory, 0, 50'000, 0));
  OK(copy_rows(stream, memory, mapped, rows));
  OK(copy_rows(stream, memory, pinned, rows));  // left out
  OK(ckpt_event_record(event, stream));
  GIVES(CKPT_ERR_CHANGED, ckpt_event_wait(event, 0, 10000));
  GIVES(CKPT_ERR_CHANGED, ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, 50'000), sha256_of(empty));
  OK(copy_rows(stream, memory, pinned, rows));
  OK(ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, 50'000), expected);
  OK(ckpt_event_destroy(event));
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  for (uint32_t buffer : {pinned, mapped}) OK(ckpt_buffer_free(buffer));
  OK(ckpt_file_close(file));
}

// CUDA registers mappings in pieces of 128 MiB, and refuses a copy out of two of them.
TEST("rows, and copies in one piece, may lie across what is pinned at once") {
  const uint64_t border = 128ull << 20, bytes = 100'000;
  const std::vector<uint8_t> content = random_bytes(bytes, 1);  // around the border
  TempFile source({});
  const int fd = open(source.path().c_str(), O_WRONLY);
  const uint64_t begin = border - bytes / 2;
  CHECK(pwrite(fd, content.data(), bytes, static_cast<off_t>(begin)) ==
        static_cast<ssize_t>(bytes));
  close(fd);
  const uint32_t file = open_file(source.path());
  const uint32_t mapped = mapped_buffer(file);
  const uint32_t memory = new_memory(bytes), stream = new_stream();
  const std::vector<uint8_t> empty(bytes, 0);
  const Rows cases[] = {
      // Offsets in the file are counted from `begin`.
      {0, 1000, 1500, 3000, 1000, 32},    // the border lies in a row
      {0, 1000, 500, 3000, 1000, 32},     // between two
      {0, 1000, 2000, 3000, 1000, 32},    // where one begins
      {0, 1000, 1000, 3000, 1000, 33},    // where one ends
      {3, 2500, 48'001, 2000, 2000, 20},  // in the first of dense rows
      {7, 90'000, 5, 90'000, 90'000, 1},  // in the only one
  };
  for (const Rows& rows : cases) {
    OK(ckpt_memory_fill(memory, 0, bytes, 0));
    Rows in_file = rows;
    in_file.from_offset += begin;
    OK(copy_rows(stream, memory, mapped, in_file));
    OK(ckpt_stream_sync(stream, 0, 10000));
    const std::string expected = sha256_of(with_rows(empty, content, rows));
    CHECK_EQ(memory_sha256(memory, 0, bytes), expected);
    OK(ckpt_memory_fill(memory, 0, bytes, 0));
    const ckpt_h2d_piece piece{memory,        mapped,          in_file.to_offset, in_file.from_offset,
                               rows.to_pitch, rows.from_pitch, rows.width,        rows.height};
    OK(ckpt_copy_h2d_batch(stream, &piece, 1));
    OK(ckpt_stream_sync(stream, 0, 10000));
    CHECK_EQ(memory_sha256(memory, 0, bytes), expected);
  }
  OK(ckpt_copy_h2d(stream, memory, 0, mapped, begin, bytes));
  OK(ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, bytes), sha256_of(content));
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(mapped));
  OK(ckpt_file_close(file));
}

TEST("rows at a pitch of 2^31 bytes, which cudaMemcpy2DAsync refuses") {
  if (kHostLibrary) return;  // its devices are too small here
  const uint64_t pitch = 1ull << 31;
  const std::vector<uint8_t> content = random_bytes(3000, 1);
  const uint32_t buffer = buffer_with(content), memory = new_memory(pitch + 1000),
                 stream = new_stream();
  OK(copy_rows(stream, memory, buffer, {0, pitch, 0, 2000, 1000, 2}));
  OK(ckpt_stream_sync(stream, 0, 10000));
  for (uint64_t row : {0, 1}) {
    const auto from = content.begin() + static_cast<int64_t>(row * 2000);
    CHECK_EQ(memory_sha256(memory, row * pitch, 1000), sha256_of({from, from + 1000}));
  }
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
}
