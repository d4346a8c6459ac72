import { assignReceivers } from '../cluster/assign-receivers.ts'
import type { Bucket } from './cut-buckets.ts'
import type { PlanNetwork } from './plan.ts'

/**
 * The buckets in the order in which they are read over a network, each with the rank that reads it: see {@link assignReceivers}.
 *
 * @throws CkptError `bad_request` where bytes have to go over devices that nobody has
 */
export function takeNetworkTurns(network: PlanNetwork, buckets: readonly Bucket[]): Bucket[] {
  const owned = buckets.map(({ owner, bytes }) => ({ owner, bytes }))
  return assignReceivers({ ...network, buckets: owned }).map(({ bucket, receiver }) => ({
    ...(buckets[bucket] as Bucket),
    rank: network.receivers[receiver]?.rank as number,
  }))
}
