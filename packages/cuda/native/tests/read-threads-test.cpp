// How many threads of a read work, and reads whose threads wait their turn.
#include "common/read-threads.h"

#include <fcntl.h>

#include "test.h"

using namespace test;
using ckpt::ReadThreads;

namespace {

constexpr uint64_t kBytes = 8ull << 30;
constexpr uint64_t kPartBytes = 512ull << 20;
constexpr bool kTmpfs = true;

uint32_t working(const ReadThreads& threads) {
  uint32_t count = 0;
  while (threads.may_work(count)) count++;
  return count;
}

// Reads `parts` parts, each slower with more threads; how many worked in each.
std::vector<uint32_t> read_parts(ReadThreads& threads, int parts) {
  std::vector<uint32_t> counts;
  for (int i = 0; i < parts; i++) {
    counts.push_back(working(threads));
    std::this_thread::sleep_for(std::chrono::milliseconds(counts.back()));
    threads.done(kPartBytes / 2);
    threads.done(kPartBytes / 2);
  }
  return counts;
}

}  // namespace

TEST("a read tries both numbers of threads twice, and later ones begin with the faster one") {
  ReadThreads first(3, 12, kBytes, kTmpfs);
  CHECK((read_parts(first, 6) == std::vector<uint32_t>{12, 3, 12, 3, 3, 3}));
  ReadThreads second(3, 12, kBytes, kTmpfs);
  CHECK_EQ(working(second), 3u);
  // of other files nothing is known
  ReadThreads disk(3, 12, kBytes, !kTmpfs);
  CHECK_EQ(working(disk), 12u);
}

TEST("a read with one number of threads has it always") {
  ReadThreads threads(5, 5, kBytes, kTmpfs);
  CHECK((read_parts(threads, 5) == std::vector<uint32_t>(5, 5)));
}

TEST("a read whose threads wait their turn brings every byte, and all of them leave") {
  constexpr uint64_t kFileBytes = 700ull << 20;  // five parts
  const std::vector<uint8_t> content = random_bytes(1 << 20, 1);
  TempFile source({});
  const int fd = open(source.path().c_str(), O_WRONLY);
  CHECK(ftruncate(fd, kFileBytes) == 0);
  for (uint64_t at = 0; at < kFileBytes; at += kFileBytes / 7) {
    CHECK(pwrite(fd, content.data(), content.size(), static_cast<off_t>(at)) ==
          static_cast<ssize_t>(content.size()));
  }
  close(fd);
  const uint32_t file = open_file(source.path());
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(kFileBytes, 0, &buffer));
  const ckpt_read_piece piece{file, buffer, 0, 0, kFileBytes};
  OK(ckpt_read_start(&piece, 1, 1, 4, 0, &read));
  OK(ckpt_read_wait(read, 0, 60000));
  OK(ckpt_read_destroy(read));
  for (uint64_t at = 0; at < kFileBytes; at += kFileBytes / 7) {
    uint8_t digest[32];
    OK(ckpt_buffer_sha256(buffer, at, content.size(), digest));
    CHECK_EQ(hex(digest, 32), sha256_of(content));
  }
  // one that ends early leaves nobody waiting either
  OK(ckpt_read_start(&piece, 1, 1, 4, 0, &read));
  OK(ckpt_read_destroy(read));
  OK(ckpt_buffer_free(buffer));
  OK(ckpt_file_close(file));
}
