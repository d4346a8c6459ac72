import type { CostRates } from '../plan/cost.ts'
import {
  type DirectJob,
  directSeconds,
  doesSharingPay,
  isRingBetter,
  ringSeconds,
} from './direct-cost.ts'

/** Engines of a cluster, each rank of which holds an equal slice of the checkpoint, which lies in equal parts on all hosts. */
export interface SlicedEngines {
  readonly totalBytes: number
  readonly tensorCount: number
  readonly hosts: number
  /** Each is a rank, and has a link of its own. */
  readonly devicesPerHost: number
  /** Ranks of one engine. */
  readonly tensorParallel: number
  /** Of a host, in each direction. */
  readonly networkBytesPerSecond: number
}

export interface SlicesPrediction {
  readonly seconds: number
  /** Over the link of each device. */
  readonly placedBytes: number
  /** By each host, of the others. */
  readonly readBytes: number
  readonly boundBy: 'h2d' | 'network'
  /** By the rule of real updates: a broadcast is not expected to be clearly faster. */
  readonly isChosen: boolean
}

/** What a direct update of such engines would take, by what the daemon decides with. */
export function predictSlices(engines: SlicedEngines, rates: CostRates): SlicesPrediction {
  const { totalBytes, tensorCount, hosts, devicesPerHost, tensorParallel } = engines
  const needed = totalBytes * Math.min(1, devicesPerHost / tensorParallel)
  const shares = devicesPerHost > tensorParallel && doesSharingPay(rates)
  const placedBytes = shares ? needed / devicesPerHost : totalBytes / tensorParallel
  const away = (hosts - 1) / hosts
  const bytesPerSecond = engines.networkBytesPerSecond
  const readBytes = needed * away
  // as much leaves each host as comes to it
  const traffic = [{ bytes: readBytes, bytesPerSecond }]
  const job: DirectJob = { placedBytes: [placedBytes], traffic }
  const seconds = directSeconds(job, rates)
  const links = directSeconds({ ...job, traffic: [] }, rates)
  const rankCount = hosts * devicesPerHost
  const all = [{ bytes: totalBytes * away, bytesPerSecond }]
  const ring = ringSeconds({ totalBytes, tensorCount, rankCount }, all, rates)
  return {
    seconds,
    placedBytes,
    readBytes,
    boundBy: seconds > links ? 'network' : 'h2d',
    isChosen: !isRingBetter(ring, seconds),
  }
}
