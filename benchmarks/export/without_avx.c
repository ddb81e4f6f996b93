/* Make the libraries of this process believe that the CPU has no AVX.
 *
 * Linux can make the CPUID instruction trap (arch_prctl ARCH_SET_CPUID, where the CPU allows it).
 * The handler runs the real instruction and clears the bits of AVX, AVX2, AVX-512, FMA, F16C and
 * of the saving of their registers, so that libraries choose their 128-bit kernels.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012

static long set_cpuid(unsigned long enabled) {
  return syscall(SYS_arch_prctl, ARCH_SET_CPUID, enabled);
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)registers[REG_RIP];
  if (code[0] != 0x0F || code[1] != 0xA2) { /* not CPUID: a real fault */
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  uint32_t leaf = (uint32_t)registers[REG_RAX], a, b, c, d;
  set_cpuid(1);
  __cpuid_count(leaf, (uint32_t)registers[REG_RCX], a, b, c, d);
  set_cpuid(0);
  if (leaf == 1) c &= ~((1u << 12) | (1u << 26) | (1u << 27) | (1u << 28) | (1u << 29));
  if (leaf == 7) a = b = c = d = 0;
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

/* Return 0, or -1 where the CPU or the kernel cannot do it. */
int hide_avx(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, 0) != 0) return -1;
  return (int)set_cpuid(0);
}
