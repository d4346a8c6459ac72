// Files, leases and reads.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <cstring>

#include "common/direct-file.h"
#include "common/file.h"
#include "common/lease-watch.h"
#include "test.h"

using namespace test;

namespace {

struct Lease {
  explicit Lease(const std::string& path, bool with_signal = false) : file(open_file(path)) {
    if (with_signal) signal = new_signal();
    OK(ckpt_file_lease(file, signal));
  }
  ~Lease() {
    ckpt_file_close(file);
    if (signal != 0) ckpt_signal_destroy(signal);
  }
  uint32_t file = 0;
  uint32_t signal = 0;
};

// A leased file with a reader inside, and a trainer that wants to write to it.
class ReadFile {
 public:
  ReadFile() : source_(random_bytes(4096, 1)), file_(ckpt::File::open(source_.path().c_str())) {
    file_->lease(nullptr);
    reader_ = file_->enter();
    CHECK(reader_ != nullptr);
  }
  // Returns when the lease is broken. Opening blocks until it is given up.
  void break_lease() {
    writer_ = Thread([this] {
      const auto start = Clock::now();
      const int fd = open(source_.path().c_str(), O_WRONLY);
      waited_ = seconds_since(start);
      close(fd);
    });
    CHECK(eventually([this] { return !file_->leased(); }));
  }
  void reader_leaves() { reader_.reset(); }
  // Seconds that the trainer has waited; below 0: it waits still.
  double waited() const { return waited_; }

 private:
  TempFile source_;
  std::shared_ptr<ckpt::File> file_;
  std::unique_ptr<ckpt::File::Reader> reader_;
  std::atomic<double> waited_{-1};
  Thread writer_;
};

// How long readers have, for one test.
struct ReadersLeave {
  explicit ReadersLeave(Clock::duration duration) {
    ckpt::LeaseWatch::instance().set_readers_leave(duration);
  }
  ~ReadersLeave() { ckpt::LeaseWatch::instance().set_readers_leave(std::chrono::seconds(20)); }
};

std::string file_sha256(uint32_t file, uint64_t offset, uint64_t bytes) {
  uint8_t digest[32];
  OK(ckpt_file_sha256(file, offset, bytes, digest));
  return hex(digest, sizeof digest);
}

ckpt_file_location location_of(uint32_t file) {
  ckpt_file_location location;
  OK(ckpt_file_locate(file, &location));
  return location;
}

bool opens_direct(uint32_t file) {
  uint32_t direct = 7;
  OK(ckpt_file_direct(file, &direct));
  CHECK(direct <= 1);
  return direct == 1;
}

// Takes what is written and clean out of the page cache.
void uncache(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY);
  CHECK(fsync(fd) == 0);
  CHECK(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
  close(fd);
}

std::vector<uint8_t> slice(const std::vector<uint8_t>& bytes, uint64_t offset, uint64_t count) {
  return {bytes.begin() + static_cast<int64_t>(offset),
          bytes.begin() + static_cast<int64_t>(offset + count)};
}

}  // namespace

TEST("opening what is not there or no regular file gives IO, and a FIFO does not block") {
  uint32_t file = 7;
  GIVES(CKPT_ERR_IO, ckpt_file_open("/tmp/ckpt-no-such-file", &file));
  CHECK(last_error().find("/tmp/ckpt-no-such-file") != std::string::npos);
  CHECK(last_error().find("No such file or directory") != std::string::npos);
  CHECK_EQ(file, 7u);
  GIVES(CKPT_ERR_IO, ckpt_file_open("/tmp", &file));
  const std::string fifo = "/tmp/ckpt-test-fifo-" + std::to_string(getpid());
  CHECK(mkfifo(fifo.c_str(), 0600) == 0);
  const int32_t status = ckpt_file_open(fifo.c_str(), &file);
  unlink(fifo.c_str());
  GIVES(CKPT_ERR_IO, status);
  GIVES(CKPT_ERR_INVALID, ckpt_file_open(nullptr, &file));
}

TEST("a file is described, read exactly and hashed") {
  const std::vector<uint8_t> content = random_bytes(9'000'001, 1);
  TempFile source(content);
  const uint32_t file = open_file(source.path());
  ckpt_file_info info;
  OK(ckpt_file_describe(file, &info));
  struct stat expected;
  CHECK(stat(source.path().c_str(), &expected) == 0);
  CHECK_EQ(info.bytes, content.size());
  CHECK_EQ(info.inode, expected.st_ino);
  CHECK_EQ(info.device, expected.st_dev);
  CHECK_EQ(info.ctime_ns, expected.st_ctim.tv_sec * 1000000000 + expected.st_ctim.tv_nsec);
  CHECK_EQ(info.leased, 0u);
  std::vector<uint8_t> part(1000);
  OK(ckpt_file_read(file, 5, part.size(), part.data()));
  CHECK(part == slice(content, 5, part.size()));
  OK(ckpt_file_read(file, content.size(), 0, nullptr));
  GIVES(CKPT_ERR_IO, ckpt_file_read(file, content.size() - 999, 1000, part.data()));
  GIVES(CKPT_ERR_INVALID, ckpt_file_read(file, 0, 1ull << 32, part.data()));
  GIVES(CKPT_ERR_INVALID, ckpt_file_read(file, UINT64_MAX, 10, part.data()));
  CHECK_EQ(file_sha256(file, 0, content.size()), sha256_of(content));
  CHECK_EQ(file_sha256(file, 12345, 5'000'000), sha256_of(slice(content, 12345, 5'000'000)));
  uint8_t digest[32];
  GIVES(CKPT_ERR_IO, ckpt_file_sha256(file, 0, content.size() + 1, digest));
  OK(ckpt_file_close(file));

  TempFile in_memory(content, "/dev/shm");
  const uint32_t other = open_file(in_memory.path());
  OK(ckpt_file_describe(other, &info));
  CHECK_EQ(info.kind, static_cast<uint32_t>(CKPT_FILE_TMPFS));
  OK(ckpt_file_close(other));
}

TEST("file_check without a lease: a write is a change, a rename or unlink is not") {
  TempFile source(random_bytes(1000, 1));
  const uint32_t file = open_file(source.path());
  OK(ckpt_file_check(file));
  TempFile newer(random_bytes(1000, 2));
  CHECK(rename(newer.path().c_str(), source.path().c_str()) == 0);
  OK(ckpt_file_check(file));
  OK(ckpt_file_close(file));

  const uint32_t replaced = open_file(source.path());
  std::this_thread::sleep_for(
      std::chrono::milliseconds(20));  // the clock of time stamps ticks every 4 ms or so
  CHECK_EQ(run_child({"write", source.path()}).exit_status, 0);
  GIVES(CKPT_ERR_CHANGED, ckpt_file_check(replaced));
  CHECK(last_error().find(source.path()) != std::string::npos);
  OK(ckpt_file_close(replaced));
}

TEST("a lease is refused with the reason, and taken once") {
  TempFile source(random_bytes(1000, 1));
  const uint32_t file = open_file(source.path());
  const int writer = open(source.path().c_str(), O_WRONLY);
  GIVES(CKPT_ERR_LEASE, ckpt_file_lease(file, 0));
  CHECK(last_error().find("open or mapped for writing") != std::string::npos);
  // A writable mapping counts as well after its fd is closed.
  const int both = open(source.path().c_str(), O_RDWR);
  void* mapping = mmap(nullptr, 1000, PROT_READ | PROT_WRITE, MAP_SHARED, both, 0);
  close(both);
  close(writer);
  GIVES(CKPT_ERR_LEASE, ckpt_file_lease(file, 0));
  munmap(mapping, 1000);
  GIVES(CKPT_ERR_HANDLE, ckpt_file_lease(file, 12345));
  OK(ckpt_file_lease(file, 0));
  ckpt_file_info info;
  OK(ckpt_file_describe(file, &info));
  CHECK_EQ(info.leased, 1u);
  GIVES(CKPT_ERR_STATE, ckpt_file_lease(file, 0));
  OK(ckpt_file_close(file));
}

TEST("a lease on a file that changed since it was opened gives CHANGED and is not kept") {
  TempFile source(random_bytes(1000, 1));
  const uint32_t file = open_file(source.path());
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK_EQ(run_child({"write", source.path()}).exit_status, 0);
  GIVES(CKPT_ERR_CHANGED, ckpt_file_lease(file, 0));
  const ChildResult writer = run_child({"write", source.path()});
  CHECK_EQ(writer.exit_status, 0);
  CHECK(std::stod(writer.output) < 10);
  uint32_t buffer = 0;
  GIVES(CKPT_ERR_CHANGED, ckpt_buffer_map(file, &buffer));
  OK(ckpt_file_close(file));
}

TEST("a broken lease is given up at once, raises its signal, and copies give CHANGED") {
  for (const char* mode : {"write", "truncate"}) {
    for (const char* folder : {"/tmp", "/dev/shm"}) {
      const std::vector<uint8_t> content = random_bytes(3'000'000, 1);
      TempFile source(content, folder);
      Lease lease(source.path(), true);
      uint32_t buffer = 0;
      OK(ckpt_buffer_map(lease.file, &buffer));
      const uint32_t memory = new_memory(content.size()), stream = new_stream(),
                     event = new_event();
      OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, content.size()));
      OK(ckpt_stream_sync(stream, 0, 10000));
      CHECK_EQ(memory_sha256(memory, 0, content.size()), sha256_of(content));
      uint8_t digest[32];
      OK(ckpt_buffer_sha256(buffer, 0, content.size(), digest));
      CHECK_EQ(hex(digest, 32), sha256_of(content));
      OK(ckpt_file_check(lease.file));

      const ChildResult writer = run_child({mode, source.path()});
      CHECK_EQ(writer.exit_status, 0);
      CHECK(std::stod(writer.output) < 10);
      uint32_t bits = 99;
      OK(ckpt_signal_wait(lease.signal, 10000, &bits));
      CHECK_EQ(bits, 0u);
      GIVES(CKPT_ERR_CHANGED, ckpt_file_check(lease.file));
      ckpt_file_info info;
      OK(ckpt_file_describe(lease.file, &info));
      CHECK_EQ(info.leased, 0u);
      OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, content.size()));
      OK(ckpt_event_record(event, stream));
      GIVES(CKPT_ERR_CHANGED, ckpt_event_wait(event, 0, 10000));
      CHECK(last_error().find(source.path()) != std::string::npos);
      GIVES(CKPT_ERR_CHANGED, ckpt_event_query(event));
      GIVES(CKPT_ERR_CHANGED, ckpt_buffer_sha256(buffer, 0, content.size(), digest));
      uint32_t second = 0;
      GIVES(CKPT_ERR_CHANGED, ckpt_buffer_map(lease.file, &second));
      OK(ckpt_stream_destroy(stream));
      OK(ckpt_event_destroy(event));
      OK(ckpt_buffer_free(buffer));
      OK(ckpt_memory_free(memory));
    }
  }
}

TEST("cutting a file off while it is copied ends the copy, not the process") {
  const std::vector<uint8_t> content = random_bytes(16 << 20, 1);
  for (int round = 0; round < 3; round++) {
    TempFile source(content, round == 0 ? "/tmp" : "/dev/shm");
    Lease lease(source.path());
    uint32_t buffer = 0;
    OK(ckpt_buffer_map(lease.file, &buffer));
    const uint32_t memory = new_memory(content.size()), stream = new_stream();
    // Longer than the child needs to start.
    for (int i = 0; i < 2000; i++) OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, content.size()));
    const ChildResult writer = run_child({"truncate", source.path()});
    CHECK_EQ(writer.exit_status, 0);
    CHECK(std::stod(writer.output) < 10);
    // A GPU reads what it has been given before the lease goes; the host library looks at the
    // file when a copy's turn has come.
    GIVES(kHostLibrary ? CKPT_ERR_CHANGED : CKPT_OK, ckpt_stream_sync(stream, 0, 30000));
    if (!kHostLibrary) {
      CHECK_EQ(memory_sha256(memory, 0, content.size()), sha256_of(content));
    }
    OK(ckpt_copy_h2d(stream, memory, 0, buffer, 0, content.size()));
    GIVES(CKPT_ERR_CHANGED, ckpt_stream_sync(stream, 0, 30000));
    OK(ckpt_stream_destroy(stream));
    OK(ckpt_buffer_free(buffer));
    OK(ckpt_memory_free(memory));
  }
}

TEST("a broken lease is given up when its own reader leaves, whatever other readers do") {
  ReadFile slow, quick;
  slow.break_lease();
  // The thread that hears of breaks has begun to wait for the slow reader.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  quick.break_lease();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(quick.waited() < 0);
  quick.reader_leaves();
  CHECK(eventually([&] { return quick.waited() >= 0; }));
  CHECK(slow.waited() < 0);
  slow.reader_leaves();
  CHECK(eventually([&] { return slow.waited() >= 0; }));
  CHECK(slow.waited() < 15);
}

TEST("several readers that do not leave: each lease is given up so long after its own break") {
  const ReadersLeave limit(std::chrono::seconds(2));
  ReadFile files[4];
  for (ReadFile& file : files) {
    file.break_lease();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  for (ReadFile& file : files) {
    CHECK(eventually([&] { return file.waited() >= 0; }));
    CHECK(file.waited() > 1.9);
    // One after the other they would take 2, 3.8, 5.6 and 7.4 s.
    CHECK(file.waited() < 3.5);
  }
}

TEST("under a lease an unlink, a rename or a touch is no change, and the bytes stay") {
  const std::vector<uint8_t> content = random_bytes(100'000, 1);
  TempFile source(content);
  Lease lease(source.path());
  uint32_t buffer = 0;
  OK(ckpt_buffer_map(lease.file, &buffer));
  const std::string moved = source.path() + "-moved";
  CHECK(rename(source.path().c_str(), moved.c_str()) == 0);
  const timespec times[2] = {{1, 0}, {1, 0}};
  CHECK(utimensat(AT_FDCWD, moved.c_str(), times, 0) == 0);
  OK(ckpt_file_check(lease.file));
  CHECK(unlink(moved.c_str()) == 0);
  OK(ckpt_file_check(lease.file));
  uint8_t digest[32];
  OK(ckpt_buffer_sha256(buffer, 0, content.size(), digest));
  CHECK_EQ(hex(digest, 32), sha256_of(content));
  OK(ckpt_buffer_free(buffer));
}

TEST("a mapping needs a lease, keeps it when the file is closed, and lets it go when it is freed") {
  const std::vector<uint8_t> content = random_bytes(5000, 1);
  TempFile source(content);
  const uint32_t file = open_file(source.path());
  uint32_t buffer = 0;
  GIVES(CKPT_ERR_STATE, ckpt_buffer_map(file, &buffer));
  OK(ckpt_file_lease(file, 0));
  OK(ckpt_buffer_map(file, &buffer));
  uint64_t bytes = 0;
  OK(ckpt_buffer_bytes(buffer, &bytes));
  CHECK_EQ(bytes, content.size());
  OK(ckpt_file_close(file));
  const auto writable_now = [&] {
    const int fd = open(source.path().c_str(), O_WRONLY | O_NONBLOCK);
    if (fd >= 0) close(fd);
    return fd >= 0;
  };
  uint8_t digest[32];
  OK(ckpt_buffer_sha256(buffer, 0, bytes, digest));
  OK(ckpt_buffer_free(buffer));
  CHECK(writable_now());

  TempFile empty({});
  Lease lease(empty.path());
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_map(lease.file, &buffer));
}

TEST("several files are read by several threads, in order, and the signal tells of progress") {
  std::vector<uint32_t> files;
  std::vector<std::vector<uint8_t>> contents;
  std::vector<ckpt_read_piece> pieces;
  uint64_t total = 0;
  for (uint32_t i = 0; i < 5; i++)
    contents.push_back(random_bytes(i == 2 ? 0 : 3'000'000 * (i + 1) + i, i));
  for (const auto& content : contents) total += content.size();
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(total, 0, &buffer));
  uint64_t offset = 0;
  for (const auto& content : contents) {
    TempFile source(content);
    files.push_back(open_file(source.path()));
    pieces.push_back({files.back(), buffer, 0, offset, content.size()});
    offset += content.size();
  }
  const uint32_t signal = new_signal();
  OK(ckpt_read_start(pieces.data(), static_cast<uint32_t>(pieces.size()), 3, 3, signal, &read));
  ckpt_read_progress progress{};
  uint32_t prefix = 0;
  do {
    uint32_t bits = 0;
    OK(ckpt_signal_wait(signal, 10000, &bits));
    OK(ckpt_read_query(read, &progress));
    CHECK(progress.pieces_prefix >= prefix && progress.bytes_done <= total);
    prefix = progress.pieces_prefix;
  } while (progress.state == CKPT_NOT_READY);
  CHECK_EQ(progress.state, static_cast<uint32_t>(CKPT_OK));
  CHECK_EQ(progress.pieces_prefix, 5u);
  CHECK_EQ(progress.bytes_done, total);
  CHECK_EQ(progress.bytes_total, total);
  OK(ckpt_read_wait(read, 0, 0));
  for (size_t i = 0; i < pieces.size(); i++) {
    uint8_t digest[32];
    OK(ckpt_buffer_sha256(buffer, pieces[i].buffer_offset, pieces[i].bytes, digest));
    CHECK_EQ(hex(digest, 32), sha256_of(contents[i]));
  }
  OK(ckpt_read_destroy(read));
  OK(ckpt_read_start(nullptr, 0, 1, 1, 0, &read));
  OK(ckpt_read_wait(read, 0, 10000));
  OK(ckpt_read_destroy(read));
  for (uint32_t file : files) OK(ckpt_file_close(file));
  OK(ckpt_signal_destroy(signal));
  OK(ckpt_buffer_free(buffer));
}

TEST("whoever waits for pieces of a read is woken once, when they are there or the read has ended") {
  TempFile source(random_bytes(3'000'000, 1));
  const uint32_t file = open_file(source.path());
  uint32_t buffer = 0, read = 0, bits = 0;
  OK(ckpt_buffer_alloc(4'000'000, 0, &buffer));
  // all into the same place, one after another
  std::vector<ckpt_read_piece> pieces(100, {file, buffer, 0, 0, 1'000'000});
  const uint32_t first = new_signal(), last = new_signal(), replaced = new_signal();
  OK(ckpt_read_start(pieces.data(), static_cast<uint32_t>(pieces.size()), 1, 1, 0, &read));
  OK(ckpt_read_notify(read, 1, first));
  OK(ckpt_read_notify(read, 100, last));
  OK(ckpt_read_notify(read, 101, replaced));
  OK(ckpt_read_notify(read, 2, replaced));
  ckpt_read_progress progress;
  for (const auto& [signal, prefix] : {std::pair{first, 1u}, {replaced, 2u}, {last, 100u}}) {
    OK(ckpt_signal_wait(signal, 10000, &bits));
    OK(ckpt_read_query(read, &progress));
    CHECK(progress.pieces_prefix >= prefix);
    CHECK_EQ(bits, 0u);
  }
  OK(ckpt_read_wait(read, 0, 10000));
  for (uint32_t signal : {first, last, replaced})
    GIVES(CKPT_ERR_TIMEOUT, ckpt_signal_wait(signal, 20, &bits));
  OK(ckpt_read_notify(read, 7, first));  // they are there: at once
  OK(ckpt_signal_wait(first, 0, &bits));
  OK(ckpt_read_destroy(read));

  pieces = {{file, buffer, 0, 0, 1'000'000}, {file, buffer, 2'500'000, 0, 1'000'000}};
  OK(ckpt_read_start(pieces.data(), 2, 1, 1, 0, &read));
  OK(ckpt_read_notify(read, 2, first));  // never there, but the read ends
  OK(ckpt_signal_wait(first, 10000, &bits));
  OK(ckpt_read_query(read, &progress));
  CHECK_EQ(progress.state, static_cast<uint32_t>(CKPT_ERR_IO));
  GIVES(CKPT_ERR_HANDLE, ckpt_read_notify(read, 1, 4242));
  OK(ckpt_read_destroy(read));
  GIVES(CKPT_ERR_HANDLE, ckpt_read_notify(read, 1, first));
  for (uint32_t signal : {first, last, replaced}) OK(ckpt_signal_destroy(signal));
  OK(ckpt_file_close(file));
  OK(ckpt_buffer_free(buffer));
}

TEST("a read that fails names its piece and the file, and keeps nothing alive") {
  TempFile source(random_bytes(1'000'000, 1));
  const uint32_t file = open_file(source.path());
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(4'000'000, 0, &buffer));
  const ckpt_read_piece pieces[3] = {{file, buffer, 0, 0, 1'000'000},
                                     {file, buffer, 500'000, 1'000'000, 1'000'000},
                                     {file, buffer, 0, 2'000'000, 1'000'000}};
  const uint32_t signal = new_signal();
  OK(ckpt_read_start(pieces, 3, 1, 1, signal, &read));
  OK(ckpt_file_close(file));
  OK(ckpt_buffer_free(buffer));
  GIVES(CKPT_ERR_IO, ckpt_read_wait(read, 0, 10000));
  uint32_t bits = 0;
  OK(ckpt_signal_wait(signal, 10000, &bits));
  ckpt_read_progress progress;
  OK(ckpt_read_query(read, &progress));
  CHECK_EQ(progress.state, static_cast<uint32_t>(CKPT_ERR_IO));
  CHECK_EQ(progress.failed_piece, 1u);
  CHECK_EQ(progress.pieces_prefix, 1u);
  char text[512];
  OK(ckpt_read_error(read, text, sizeof text));
  CHECK_EQ(std::string(text), "read " + source.path() + " at 1000000: the file ends there");
  OK(ckpt_read_destroy(read));
  OK(ckpt_signal_destroy(signal));
}

TEST("reads refuse ranges outside of the buffer, read-only buffers and wrong counts") {
  TempFile source(random_bytes(4096, 1));
  Lease lease(source.path());
  uint32_t buffer = 0, mapped = 0, read = 0;
  OK(ckpt_buffer_alloc(4096, 0, &buffer));
  OK(ckpt_buffer_map(lease.file, &mapped));
  ckpt_read_piece piece{lease.file, buffer, 0, 1, 4096};
  GIVES(CKPT_ERR_INVALID, ckpt_read_start(&piece, 1, 1, 1, 0, &read));
  piece = {lease.file, mapped, 0, 0, 4096};
  GIVES(CKPT_ERR_INVALID, ckpt_read_start(&piece, 1, 1, 1, 0, &read));
  piece = {lease.file, buffer, 0, 0, 4096};
  GIVES(CKPT_ERR_INVALID, ckpt_read_start(&piece, 1, 0, 0, 0, &read));
  GIVES(CKPT_ERR_INVALID, ckpt_read_start(&piece, 1, 65, 65, 0, &read));
  GIVES(CKPT_ERR_INVALID, ckpt_read_start(&piece, 1, 2, 1, 0, &read));
  GIVES(CKPT_ERR_INVALID, ckpt_read_start(&piece, 1, 0, 1, 0, &read));
  GIVES(CKPT_ERR_INVALID, ckpt_read_start(nullptr, 1, 1, 1, 0, &read));
  GIVES(CKPT_ERR_HANDLE, ckpt_read_start(&piece, 1, 1, 1, 4242, &read));
  piece.file = 4242;
  GIVES(CKPT_ERR_HANDLE, ckpt_read_start(&piece, 1, 1, 1, 0, &read));
  OK(ckpt_buffer_free(mapped));
  OK(ckpt_buffer_free(buffer));
}

TEST("a long read is waited for with a deadline and an abort, and destroyed at once") {
  // 2 TB out of the hole of a sparse file.
  TempFile sparse({}, "/dev/shm");
  constexpr uint64_t bytes = 64ull << 20;
  CHECK(truncate(sparse.path().c_str(), bytes) == 0);
  const uint32_t file = open_file(sparse.path());
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(bytes, 0, &buffer));
  const std::vector<ckpt_read_piece> pieces(32'000, {file, buffer, 0, 0, bytes});
  const uint32_t signal = new_signal();
  OK(ckpt_read_start(pieces.data(), static_cast<uint32_t>(pieces.size()), 1, 1, signal, &read));
  // The signal tells of a piece that is done while the others are not.
  uint32_t bits = 0;
  OK(ckpt_signal_wait(signal, 10000, &bits));
  ckpt_read_progress progress;
  OK(ckpt_read_query(read, &progress));
  CHECK_EQ(progress.state, static_cast<uint32_t>(CKPT_NOT_READY));
  CHECK(progress.pieces_prefix > 0);
  GIVES(CKPT_ERR_TIMEOUT, ckpt_read_wait(read, 0, 10));
  Thread aborter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ckpt_signal_raise(signal, CKPT_SIGNAL_ABORT);
  });
  const auto start = Clock::now();
  GIVES(CKPT_ERR_ABORTED, ckpt_read_wait(read, signal, 30000));
  aborter.join();
  // A wait in another thread ends with the read.
  std::atomic<int32_t> status{-1};
  Thread waiter([&] { status = ckpt_read_wait(read, 0, 30000); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  OK(ckpt_read_destroy(read));
  waiter.join();
  // The handle is gone already where the waiter comes late.
  CHECK(status == CKPT_ERR_ABORTED || status == CKPT_ERR_HANDLE);
  CHECK(seconds_since(start) < 10);
  OK(ckpt_signal_destroy(signal));
  OK(ckpt_buffer_free(buffer));
  OK(ckpt_file_close(file));
}

TEST("a file is located: its file system, and how much of it is in the page cache") {
  TempFile in_memory(random_bytes(3'000'001, 1), "/dev/shm");
  uint32_t file = open_file(in_memory.path());
  ckpt_file_location location = location_of(file);
  CHECK_EQ(location.filesystem, 0x01021994u);  // tmpfs
  CHECK_EQ(location.cached_known, 1u);
  CHECK_EQ(location.bytes_cached, 3'000'001u);
  CHECK_EQ(location.bytes_looked, 3'000'001u);
  OK(ckpt_file_close(file));

  TempFile empty({});
  file = open_file(empty.path());
  location = location_of(file);
  CHECK_EQ(location.bytes_looked, 0u);
  CHECK_EQ(location.bytes_cached, 0u);
  GIVES(CKPT_ERR_INVALID, ckpt_file_locate(file, nullptr));
  OK(ckpt_file_close(file));
  GIVES(CKPT_ERR_HANDLE, ckpt_file_locate(file, &location));

  // More than the ranges that are looked at: half of it read, at the front.
  TempFile large(random_bytes(100'000'000, 1));
  file = open_file(large.path());
  CHECK_EQ(location_of(file).bytes_cached, 64u << 20);
  CHECK_EQ(location_of(file).bytes_looked, 64u << 20);
  uncache(large.path());
  location = location_of(file);
  if (location.bytes_cached > 0)
    throw Skipped{"the file system keeps pages that it is told to drop"};
  file_sha256(file, 0, 50'000'000);
  location = location_of(file);
  // and what was read ahead
  CHECK(location.bytes_cached >= 31u << 20 && location.bytes_cached < 56u << 20);
  OK(ckpt_file_close(file));
}

TEST("direct reads bring the same bytes at any offset and size, and leave the page cache alone") {
  const std::vector<uint8_t> content = random_bytes(21'000'001, 1);
  TempFile source(content);
  const uint32_t file = open_file(source.path());
  if (!opens_direct(file)) throw Skipped{"the file system of /tmp refuses O_DIRECT"};
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(64 << 20, 0, &buffer));
  uncache(source.path());
  const uint64_t cached = location_of(file).bytes_cached;
  std::vector<ckpt_read_piece> pieces;
  uint64_t to = 0;
  const std::vector<std::pair<uint64_t, uint64_t>> ranges = {
      {0, content.size()}, {1, 5'000'000},   {4095, 300'000},         {4096, 1 << 20},
      {8191, 262'144},     {777, 4'194'304}, {20'000'000, 1'000'001}, {20'737'856, 262'145},
  };
  for (const auto& [offset, bytes] : ranges) {
    pieces.push_back({file, buffer, offset, to, bytes});
    to += bytes + 256 - bytes % 256 + (pieces.size() % 2);
  }
  OK(ckpt_read_start(pieces.data(), static_cast<uint32_t>(pieces.size()), 3, 3, 0, &read));
  OK(ckpt_read_wait(read, 0, 30000));
  OK(ckpt_read_destroy(read));
  // The rest of the first piece's last chunk is small, and read through it.
  CHECK(location_of(file).bytes_cached <= cached + (1 << 20));
  for (const ckpt_read_piece& piece : pieces) {
    uint8_t digest[32];
    OK(ckpt_buffer_sha256(buffer, piece.buffer_offset, piece.bytes, digest));
    CHECK_EQ(hex(digest, 32), sha256_of(slice(content, piece.file_offset, piece.bytes)));
  }
  // A small piece is read through the cache.
  const ckpt_read_piece small{file, buffer, 100'001, 0, 5000};
  OK(ckpt_read_start(&small, 1, 1, 1, 0, &read));
  OK(ckpt_read_wait(read, 0, 30000));
  OK(ckpt_read_destroy(read));
  uint8_t digest[32];
  OK(ckpt_buffer_sha256(buffer, 0, 5000, digest));
  CHECK_EQ(hex(digest, 32), sha256_of(slice(content, 100'001, 5000)));
  OK(ckpt_buffer_free(buffer));
  OK(ckpt_file_close(file));
}

TEST("a direct read sees what was just written, and names where a file that was cut off ends") {
  std::vector<uint8_t> content = random_bytes(9'000'000, 1);
  TempFile source(content);
  const uint32_t file = open_file(source.path());
  if (!opens_direct(file)) throw Skipped{"the file system of /tmp refuses O_DIRECT"};
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(16 << 20, 0, &buffer));
  const int writer = open(source.path().c_str(), O_WRONLY);
  std::fill(content.begin() + 1'000'003, content.begin() + 3'000'000, uint8_t{7});
  CHECK(pwrite(writer, content.data() + 1'000'003, 1'999'997, 1'000'003) == 1'999'997);
  ckpt_read_piece piece{file, buffer, 3, 1, content.size() - 3};
  OK(ckpt_read_start(&piece, 1, 2, 2, 0, &read));
  OK(ckpt_read_wait(read, 0, 30000));
  OK(ckpt_read_destroy(read));
  uint8_t digest[32];
  OK(ckpt_buffer_sha256(buffer, 1, content.size() - 3, digest));
  CHECK_EQ(hex(digest, 32), sha256_of(slice(content, 3, content.size() - 3)));

  for (const uint64_t end : {5'000'123ull, 4096ull, 0ull}) {
    CHECK(ftruncate(writer, static_cast<off_t>(end)) == 0);
    piece = {file, buffer, 4'194'304 + 77, 0, 1 << 20};
    OK(ckpt_read_start(&piece, 1, 1, 1, 0, &read));
    GIVES(CKPT_ERR_IO, ckpt_read_wait(read, 0, 30000));
    char text[512];
    OK(ckpt_read_error(read, text, sizeof text));
    const uint64_t told = std::max<uint64_t>(end, piece.file_offset);
    CHECK_EQ(std::string(text),
             "read " + source.path() + " at " + std::to_string(told) + ": the file ends there");
    OK(ckpt_read_destroy(read));
  }
  close(writer);
  OK(ckpt_buffer_free(buffer));
  OK(ckpt_file_close(file));
}

TEST("where O_DIRECT is refused the file is read as before") {
  // A pipe has no blocks: stands for a file system without O_DIRECT.
  int ends[2];
  CHECK(pipe(ends) == 0);
  CHECK(ckpt::DirectFile::open(ends[0]) == nullptr);
  close(ends[0]);
  close(ends[1]);
  // On tmpfs either answer is right; the bytes are.
  const std::vector<uint8_t> content = random_bytes(5'000'001, 1);
  TempFile source(content, "/dev/shm");
  const uint32_t file = open_file(source.path());
  opens_direct(file);
  uint32_t buffer = 0, read = 0;
  OK(ckpt_buffer_alloc(8 << 20, 0, &buffer));
  const ckpt_read_piece piece{file, buffer, 1, 0, content.size() - 1};
  OK(ckpt_read_start(&piece, 1, 2, 2, 0, &read));
  OK(ckpt_read_wait(read, 0, 30000));
  OK(ckpt_read_destroy(read));
  uint8_t digest[32];
  OK(ckpt_buffer_sha256(buffer, 0, content.size() - 1, digest));
  CHECK_EQ(hex(digest, 32), sha256_of(slice(content, 1, content.size() - 1)));
  OK(ckpt_buffer_free(buffer));
  OK(ckpt_file_close(file));
  GIVES(CKPT_ERR_INVALID, ckpt_file_direct(file, nullptr));
  uint32_t direct = 0;
  GIVES(CKPT_ERR_HANDLE, ckpt_file_direct(file, &direct));
}
