import type { Failure } from '@ckpt/core'

const NCCL_HINT =
  'all daemons are there: is the network of NCCL open between them (NCCL_SOCKET_IFNAME)?'

/** What a rank that misses another one is told as, where no daemon of the update's `hosts` was found to be lost. */
export function missedRank(failure: Failure, hosts: number): Failure {
  if (hosts === 1) return { ...failure, code: 'device_error' }
  if (!failure.message.includes('NCCL')) return failure
  return { ...failure, message: `${failure.message.trimEnd()}; ${NCCL_HINT}` }
}
