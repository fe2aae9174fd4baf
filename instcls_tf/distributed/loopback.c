/* Preloaded into mpirun where all workers are on one machine: it listens on all interfaces there, whatever it is told
 * (oob_tcp_if_include is about where it connects to), and nobody else has to reach it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>

typedef int (*Bind)(int, const struct sockaddr*, socklen_t);

int bind(int socket, const struct sockaddr* address, socklen_t length) {
  const Bind system_bind = (Bind)dlsym(RTLD_NEXT, "bind");
  if (address->sa_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
    struct sockaddr_in local = *(const struct sockaddr_in*)address;
    if (local.sin_addr.s_addr == htonl(INADDR_ANY)) local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return system_bind(socket, (const struct sockaddr*)&local, sizeof local);
  }
  if (address->sa_family == AF_INET6 && length >= sizeof(struct sockaddr_in6)) {
    struct sockaddr_in6 local = *(const struct sockaddr_in6*)address;
    if (IN6_IS_ADDR_UNSPECIFIED(&local.sin6_addr)) local.sin6_addr = in6addr_loopback;
    return system_bind(socket, (const struct sockaddr*)&local, sizeof local);
  }
  return system_bind(socket, address, length);
}
