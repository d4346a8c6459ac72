// How many threads of a read work, and reads whose threads wait their turn.
#include "common/read-threads.h"

#include <fcntl.h>

#include "test.h"

using namespace test;
using ckpt::ReadThreads;

namespace {

constexpr uint64_t kBytes = 8ull << 30;
constexpr uint64_t kPartBytes = 512ull << 20;
using Kind = ReadThreads::Kind;

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
  ReadThreads first(3, 12, kBytes, Kind::tmpfs);
  CHECK((read_parts(first, 6) == std::vector<uint32_t>{12, 3, 12, 3, 3, 3}));
  ReadThreads second(3, 12, kBytes, Kind::tmpfs);
  CHECK_EQ(working(second), 3u);
  // of other files nothing is known
  ReadThreads disk(3, 12, kBytes, Kind::disk);
  CHECK_EQ(working(disk), 12u);
}

TEST("a read with one number of threads has it always") {
  ReadThreads threads(5, 5, kBytes, Kind::tmpfs);
  CHECK((read_parts(threads, 5) == std::vector<uint32_t>(5, 5)));
}

constexpr uint64_t kFileBytes = 400ull << 20;  // three parts
constexpr uint64_t kBlockBytes = 1 << 20;

// The same random MiB again and again, in shared memory.
class LargeFile {
 public:
  LargeFile() : block(random_bytes(kBlockBytes, 1)) {
    const int fd = open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600);
    CHECK(fd >= 0);
    for (uint64_t at = 0; at < kFileBytes; at += kBlockBytes) {
      CHECK(write(fd, block.data(), kBlockBytes) == static_cast<ssize_t>(kBlockBytes));
    }
    close(fd);
    file = open_file(path);
    OK(ckpt_buffer_alloc(kFileBytes, 0, &buffer));
  }
  ~LargeFile() {
    ckpt_buffer_free(buffer);
    ckpt_file_close(file);
    unlink(path.c_str());
  }
  LargeFile(const LargeFile&) = delete;

  const std::string path = "/dev/shm/read-threads-" + std::to_string(getpid());
  const std::vector<uint8_t> block;
  uint32_t file = 0, buffer = 0;
};

// From now on reads of such files let one thread work, and the others wait.
void teach_one(uint32_t most) {
  ReadThreads threads(1, most, kBytes, Kind::tmpfs);
  for (int i = 0; i < 4; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10 * working(threads)));
    threads.done(kPartBytes);
  }
  CHECK_EQ(working(threads), 1u);
}

TEST("a read whose threads wait their turn brings every byte, and all of them leave") {
  LargeFile source;
  const ckpt_read_piece piece{source.file, source.buffer, 0, 0, kFileBytes};
  uint32_t read = 0;
  OK(ckpt_read_start(&piece, 1, 1, 4, 0, &read));
  OK(ckpt_read_wait(read, 0, 60000));
  OK(ckpt_read_destroy(read));
  const std::string expected = sha256_of(source.block);
  for (uint64_t at = 0; at < kFileBytes; at += kBlockBytes) {
    uint8_t digest[32];
    OK(ckpt_buffer_sha256(source.buffer, at, kBlockBytes, digest));
    CHECK_EQ(hex(digest, 32), expected);
  }
  // one that ends early leaves nobody waiting either
  OK(ckpt_read_start(&piece, 1, 1, 4, 0, &read));
  OK(ckpt_read_destroy(read));
}

TEST("a read that fails while threads wait their turn ends") {
  LargeFile source;
  teach_one(5);
  const ckpt_read_piece piece{source.file, source.buffer, 0, 0, kFileBytes};
  CHECK(truncate(source.path.c_str(), kFileBytes / 2) == 0);
  uint32_t read = 0;
  OK(ckpt_read_start(&piece, 1, 1, 5, 0, &read));
  GIVES(CKPT_ERR_IO, ckpt_read_wait(read, 0, 10000));
  OK(ckpt_read_destroy(read));
}
