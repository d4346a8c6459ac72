#include "rendezvous-client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>

#include "common/limit.h"

namespace ckpt {
namespace {

// A signal's descriptor is its owner's to drain, so that its bit is looked at now and again.
constexpr std::chrono::milliseconds kLook{20};
constexpr std::chrono::milliseconds kRetry{50};
// An address that nothing answers at must not keep from the next one.
constexpr std::chrono::seconds kConnectLimit{2};
constexpr const char* kMeet = "the communicator's other members";

class Connection {
 public:
  explicit Connection(const Limit& limit) : limit_(limit) {}
  ~Connection() {
    if (fd_ >= 0) ::close(fd_);
  }
  Connection(const Connection&) = delete;

  bool open(uint32_t address, uint16_t port) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd_ < 0) fail_errno(CKPT_ERR_IO, errno, "socket");
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = address;
    if (connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return true;
    if (errno != EINPROGRESS) return false;
    const auto until = Clock::now() + kConnectLimit;
    while (!ready(POLLOUT)) {
      if (Clock::now() >= until) return false;
    }
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
  }

  // False: the connection is lost.
  bool write(const void* bytes, size_t count) {
    const auto* from = static_cast<const uint8_t*>(bytes);
    return move(count, POLLOUT, [&](size_t done) {
      return send(fd_, from + done, count - done, MSG_NOSIGNAL);
    });
  }
  bool read(void* bytes, size_t count) {
    auto* to = static_cast<uint8_t*>(bytes);
    return move(count, POLLIN,
                [&](size_t done) { return recv(fd_, to + done, count - done, 0); });
  }

 private:
  template <class Step>
  bool move(size_t count, short event, Step&& step) {
    for (size_t done = 0; done < count;) {
      const ssize_t moved = step(done);
      if (moved > 0) {
        done += static_cast<size_t>(moved);
      } else if (moved == 0 || (errno != EAGAIN && errno != EINTR)) {
        return false;
      } else {
        ready(event);
      }
    }
    return true;
  }
  bool ready(short event) {
    limit_.check(kMeet);
    pollfd one{fd_, event, 0};
    return poll(&one, 1, static_cast<int>(kLook.count())) > 0;
  }

  const Limit& limit_;
  int fd_ = -1;
};

// The lengths in it are not believed.
class TableReader {
 public:
  explicit TableReader(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  uint32_t word() {
    uint32_t value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  const uint8_t* take(size_t count) {
    if (count > bytes_.size() - at_) fail(CKPT_ERR_IO, "the rendezvous's table is cut off");
    at_ += count;
    return bytes_.data() + at_ - count;
  }

 private:
  const std::vector<uint8_t>& bytes_;
  size_t at_ = 0;
};

MemberTable read_table(const std::vector<uint8_t>& bytes, uint32_t members) {
  TableReader reader(bytes);
  MemberTable table;
  const uint32_t processes = reader.word();
  if (processes == 0 || processes > members)
    fail(CKPT_ERR_IO, "the rendezvous tells of %u processes of %u members", processes, members);
  for (uint32_t i = 0; i < members; i++) {
    table.process_of.push_back(reader.word());
    if (table.process_of.back() >= processes)
      fail(CKPT_ERR_IO, "the rendezvous tells of process %u", table.process_of.back());
  }
  for (uint32_t i = 0; i < processes; i++) {
    const uint32_t count = reader.word();
    const uint8_t* address = reader.take(count);
    table.addresses.emplace_back(address, address + count);
  }
  return table;
}

// Nothing: the connection is lost.
std::optional<MemberTable> converse(Connection& connection, const Hello& hello,
                                    const std::vector<uint8_t>& address) {
  Answer answer{};
  if (!connection.write(&hello, sizeof hello)) return std::nullopt;
  if (!connection.write(address.data(), address.size())) return std::nullopt;
  if (!connection.read(&answer, sizeof answer)) return std::nullopt;
  const uint32_t bytes_max = answer.status == CKPT_OK ? kTableBytesMax : kAnswerTextBytesMax;
  if (answer.bytes > bytes_max || answer.status == CKPT_NOT_READY ||
      answer.status > CKPT_ERR_STATE)
    fail(CKPT_ERR_IO, "the rendezvous answers with %u bytes", answer.bytes);
  std::vector<uint8_t> bytes(answer.bytes);
  if (!connection.read(bytes.data(), bytes.size())) return std::nullopt;
  if (answer.status != CKPT_OK)
    throw Error(static_cast<ckpt_status>(answer.status), std::string(bytes.begin(), bytes.end()));
  return read_table(bytes, hello.members);
}

}  // namespace

MemberTable meet_members(const RendezvousId& id, const Hello& hello,
                         const std::vector<uint8_t>& address, Signal* signal,
                         uint32_t timeout_ms) {
  const Limit limit(signal, timeout_ms);
  std::vector<uint32_t> addresses(id.addresses, id.addresses + id.address_count);
  if (id.host == host_tag()) addresses.push_back(htonl(INADDR_LOOPBACK));
  for (;;) {
    for (const uint32_t one : addresses) {
      Connection connection(limit);
      if (!connection.open(one, id.port)) continue;
      if (auto table = converse(connection, hello, address)) return std::move(*table);
    }
    limit.check(kMeet);
    std::this_thread::sleep_for(kRetry);
  }
}

}  // namespace ckpt
