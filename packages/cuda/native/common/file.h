// An open file, its identity and its read lease.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "direct-file.h"
#include "handle-table.h"
#include "signals.h"

namespace ckpt {

// Readers of the file's pages pass the gate for one chunk at a time. A broken lease closes it, and
// is given up only when those inside have left, so that no page that is being read is ever
// overwritten or cut off.
class ReadGate {
 public:
  bool enter();
  // True for the last one to leave a closed gate.
  bool leave();
  void close();
  bool closed() const noexcept { return closed_.load(std::memory_order_acquire); }
  bool empty();

 private:
  std::mutex mutex_;
  uint64_t inside_ = 0;
  std::atomic<bool> closed_{false};
};

class File : public Object, public std::enable_shared_from_this<File> {
 public:
  static constexpr Kind kKind = Kind::file;

  // Regular files only. CKPT_ERR_IO.
  static std::shared_ptr<File> open(const char* path);
  ~File() override;
  File(int fd, std::string path, const struct stat& info);

  int fd() const noexcept { return fd_; }
  const std::string& path() const noexcept { return path_; }
  uint64_t bytes() const noexcept { return static_cast<uint64_t>(opened_.st_size); }
  bool on_tmpfs() const;
  void describe(ckpt_file_info& info);
  void locate(ckpt_file_location& location);

  // Exactly `bytes` bytes; CKPT_ERR_IO, also when the file ends before.
  void read(uint64_t offset, uint64_t bytes, void* to);
  void sha256(uint64_t offset, uint64_t bytes, uint8_t* digest);

  // Whether the file can be read past the page cache; from then on read_bulk does that.
  bool open_direct();
  bool direct();
  // As read(), with its errors, for the bytes of tensors.
  void read_bulk(uint64_t offset, uint64_t bytes, uint8_t* to, BounceBuffer& bounce);

  void lease(std::shared_ptr<Signal> signal);
  // True once lease() has succeeded, also after a break.
  bool has_lease();
  // True while the lease is held and nobody has asked for it back.
  bool leased();
  // CKPT_ERR_CHANGED; see ckpt_file_check.
  void check();

  // As read(), through the gate and chunk by chunk, with CKPT_ERR_CHANGED as soon as the lease is
  // broken. Never raises SIGBUS, which a copy out of a mapping does when the file is cut off or the
  // disk fails.
  void read_leased(uint64_t offset, uint64_t bytes, void* to);
  // One pass of read_leased's checks, for backends that let the device read the mapping:
  // CKPT_ERR_CHANGED.
  void require_lease();
  // A backend keeps a Reader while the device reads the mapping; null when the lease is broken. The
  // lease is given up when every reader is gone, or after 20 seconds.
  class Reader {
   public:
    explicit Reader(std::shared_ptr<File> file)
        : file_(std::move(file)), inside_(file_->gate_.enter()) {}
    ~Reader() {
      if (inside_) file_->leave();
    }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    bool inside() const noexcept { return inside_; }

   private:
    std::shared_ptr<File> file_;
    bool inside_;
  };
  std::unique_ptr<Reader> enter();
  // Many reads like read_leased's: they pass the gate and look at the lease once for each chunk of
  // bytes, because for a few bytes that costs more than to read them.
  class LeasedReads {
   public:
    explicit LeasedReads(std::shared_ptr<File> file) : file_(std::move(file)) {}
    void read(uint64_t offset, uint64_t bytes, void* to);
    // CKPT_ERR_CHANGED: what was read last may not be the file's content.
    void end();

   private:
    void renew();
    std::shared_ptr<File> file_;
    std::unique_ptr<Reader> reader_;
    uint64_t bytes_left_ = 0;  // of the chunk
  };

 private:
  friend class LeaseWatch;
  uint64_t read_some(uint64_t offset, uint64_t bytes, void* to);
  bool lease_broken();
  void leave();
  void give_lease_up();
  [[noreturn]] void fail_changed(const char* reason);

  const int fd_;
  const std::string path_;
  const struct stat opened_;
  std::mutex mutex_;
  bool lease_taken_ = false;
  std::shared_ptr<Signal> lease_signal_;
  std::shared_ptr<DirectFile> direct_;
  ReadGate gate_;
};

}  // namespace ckpt
