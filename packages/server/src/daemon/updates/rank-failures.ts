import type { ErrorCode, Failure, Phase } from '@ckpt/core'
import type { RankHandle } from '../rank/handle.ts'
import type { HeldVersion, RankInfo } from '../types.ts'
import type { EngineContact } from './contact.ts'
import { missedRank } from './missed-rank.ts'
import { hostsOf } from './network.ts'
import type { UpdateSpec } from './spec.ts'
import type { RankTeam } from './team.ts'
import type { UpdateTimes } from './times.ts'

/** For the slowest rank to say what it waits for, which a busy machine may keep from it for a while. */
const SLOWEST_RANK_MS = 180
/** For the daemon of a rank that others miss to be missed itself: its heartbeats may be all that tells. */
const MISSED_RANK_MS = 6000
/** How long before the deadline an engine may find that it is over. */
const ENGINE_GIVES_UP_MS = 250
/** How that looks. */
const GIVES_UP: ReadonlySet<ErrorCode> = new Set(['engine_failed', 'engine_disconnected'])
/** What an update waits for in the others, files or engines, no rank can be late with. */
const RANK_PHASES: ReadonlySet<Phase> = new Set(['open', 'transfer', 'release'])

/** How an update stands when something of it fails. */
export interface UpdateState {
  /** Null: it is between two. */
  readonly phase: Phase | null
  /** Ranks that it has come to. */
  readonly links: readonly RankHandle[]
  readonly team: RankTeam | null
  readonly contacts: readonly EngineContact[]
  /** Those that have done what follows an update. */
  readonly settled: ReadonlySet<EngineContact>
  /** Null: it has not come to it. */
  readonly version: HeldVersion | null
  /** Of files that are still being read; empty: of none. */
  readonly reading: string
  /** It waits for copies of an earlier update. */
  readonly waitsForCopies: boolean
}

/** Finds what an update has failed of, and which rank, when several of them fail or none says anything. */
export class RankFailures {
  readonly #spec: Pick<UpdateSpec, 'timeoutMs'>
  readonly #times: Pick<UpdateTimes, 'leftMs' | 'waitMs'>
  readonly #state: () => UpdateState
  readonly #fail: (failure: Failure) => void

  /** @param fail ends the update: of several the first counts */
  constructor(
    spec: Pick<UpdateSpec, 'timeoutMs'>,
    times: Pick<UpdateTimes, 'leftMs' | 'waitMs'>,
    state: () => UpdateState,
    fail: (failure: Failure) => void,
  ) {
    this.#spec = spec
    this.#times = times
    this.#state = state
    this.#fail = fail
  }

  /** `update_timeout`, of the rank that the update waits for; of none where it waits for something else. */
  get late(): Failure {
    const { phase: current, links, reading, waitsForCopies } = this.#state()
    const seconds = this.#spec.timeoutMs / 1000
    const phase = current ?? 'gather'
    const others = waitsForCopies ? '; copies of an aborted update still write an engine' : ''
    const message = `the ${seconds} s of the update have passed in phase ${phase}${reading}${others}`
    const rank = links.find(({ owes }) => owes)?.rank.rank ?? this.#lateRank(phase)
    return { code: 'update_timeout', message, phase, ...(rank === undefined ? {} : { rank }) }
  }

  #lateRank(phase: Phase): number | undefined {
    const { team, waitsForCopies } = this.#state()
    // its own ranks have nothing to do yet
    if (waitsForCopies) return undefined
    return RANK_PHASES.has(phase) ? team?.slowestRank : this.#unsettledRank(phase)
  }

  /** Of an engine that the end of the update waits for. */
  #unsettledRank(phase: Phase): number | undefined {
    const { contacts, settled } = this.#state()
    if (phase !== 'post') return undefined
    return contacts.find((one) => !settled.has(one))?.spec.ranks[0]
  }

  /**
   * At the deadline every rank fails at once, most of them only because they wait for the slowest one: that one says what the
   * update really waited for. Where it cannot in time, what is known of it here is told, and not what another one saw. A rank that
   * misses another one does not know whom, or why: whoever does comes first too.
   *
   * @param connected whether a worker of the rank's engine has ever connected
   */
  take(told: Failure, rank: RankInfo, connected: boolean): void {
    const { team, reading } = this.#state()
    const failure = this.#asMissingDevice(told, rank, connected)
    if (failure.code === 'node_lost' && !this.#isLost(failure.rank)) return this.#missed(failure)
    // engines are told the deadline, and give up at it themselves: their workers close
    const gaveUp = GIVES_UP.has(failure.code) && this.#times.leftMs < ENGINE_GIVES_UP_MS
    if (failure.code !== 'update_timeout' && !gaveUp) return this.#fail(failure)
    if (failure.rank === team?.slowestRank) {
      return this.#fail({ ...failure, message: `${failure.message}${reading}` })
    }
    setTimeout(() => this.#fail(this.late), SLOWEST_RANK_MS)
  }

  #missed(failure: Failure): void {
    const { team, version } = this.#state()
    const links = team?.links ?? []
    const hosts = version === null ? 0 : hostsOf(version, links)
    if (hosts === 1) return this.#fail(missedRank(failure, hosts))
    setTimeout(
      () => {
        const anyDead = links.some(({ dead }) => dead !== null)
        this.#fail(anyDead ? failure : missedRank(failure, hosts))
      },
      Math.min(MISSED_RANK_MS, this.#times.waitMs),
    )
  }

  #isLost(rank: number | undefined): boolean {
    const { team } = this.#state()
    return team?.links.some(({ rank: one, dead }) => one.rank === rank && dead) ?? false
  }

  /** A worker that never came while others of its engine did: the engine does not have that device. */
  #asMissingDevice(failure: Failure, rank: RankInfo, connected: boolean): Failure {
    if (failure.code !== 'engine_timeout' || failure.phase !== 'open' || connected) return failure
    const { team, contacts } = this.#state()
    const contact = contacts.find((one) => one.ranks.includes(rank))
    const others = contact?.ranks ?? team?.links.map((link) => link.rank) ?? []
    if (!team?.anyOpened(others)) return failure
    const message = `no worker has connected for device ${rank.key} of rank ${rank.rank}, while others have: ${failure.message}`
    return { ...failure, code: 'engine_device_missing', message }
  }
}
