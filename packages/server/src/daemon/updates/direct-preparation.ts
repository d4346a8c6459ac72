import { CkptError } from '@ckpt/core'
import { abortOf, signalWithin } from '../../engines/client.ts'
import { clockMs } from '../clock.ts'
import { log } from '../log.ts'
import type { HeldVersion } from '../types.ts'
import type { EngineContact } from './contact.ts'
import { UpdateConversations } from './conversations.ts'
import { directObstacle } from './direct-obstacle.ts'
import { memoryAway } from './network.ts'
import { keepLayout } from './plan.ts'
import type { RunContext } from './run-context.ts'
import type { UpdateSpec } from './spec.ts'
import { RankTeam } from './team.ts'

/** It is of use to later updates only: none waits longer for it, nor with less time left than it takes itself. */
const MOST_MS = 10_000
const LEAST_MS = 1000
/** For the engines' workers to leave. */
const LEAVE_MS = 2000
/** What is left to do when the time for leaving is over. */
const CLOSE_MS = 500
/** Asking an engine what has become of it. */
const ASK_MS = 1000
const NO_ANSWER = { code: 'engine_timeout', message: 'the engine did not answer' } as const
const DONE = 'the next update may go straight into the memory of the engine'

export interface DirectPreparation {
  readonly context: Pick<RunContext, 'pool' | 'journal' | 'sockets' | 'closing' | 'directCosts'>
  readonly spec: UpdateSpec
  /** Of its own. */
  readonly run: number
  readonly version: HeldVersion
  /** New ones: what the engines have said to the update stays with its own. */
  readonly contacts: readonly EngineContact[]
  /** Of the update, on `clockMs`. */
  readonly deadlineMs: number
  /** Ends it before. */
  readonly signal: AbortSignal
}

/**
 * After an update through the ring, before the engines resume: has them say where their weights lie and plans for it, so that the
 * first direct update is as fast as later ones. Changes nothing in them, and what fails here is no failure of the update: the next
 * one asks them itself.
 */
export async function prepareDirect(preparation: DirectPreparation): Promise<void> {
  const { context, spec, version, contacts, deadlineMs, signal } = preparation
  if (spec.mode !== 'auto' || directObstacle(spec, contacts) !== null) return
  if (context.directCosts.against(version, spec) !== null) return
  const limitMs = Math.min(MOST_MS, (deadlineMs - clockMs()) / 2 - LEAVE_MS - CLOSE_MS)
  if (limitMs < LEAST_MS) return
  const message = `the engine has not said within ${(limitMs / 1000).toFixed(1)} s where its weights lie`
  const within = signalWithin(signal, limitMs, { code: 'engine_timeout', message })
  try {
    await lookAndPlan(preparation, clockMs() + limitMs, within)
  } catch (error) {
    const { message } = CkptError.wrap(error)
    if (!signal.aborted) log.warn('the next update has to ask the engine: {message}', { message })
  }
}

/**
 * @param within ends it
 * @throws CkptError what went wrong, after every worker has left or was given up
 */
async function lookAndPlan(
  preparation: DirectPreparation,
  untilMs: number,
  within: AbortSignal,
): Promise<void> {
  const { context, spec, run, version, contacts } = preparation
  const rankFailed = new AbortController()
  const stop = AbortSignal.any([within, rankFailed.signal])
  const race = <T>(work: Promise<T>) => Promise.race([work, abortOf(stop)])
  const same = await race(Promise.all(contacts.map((one) => one.isAsBefore(stop))))
  if (same.includes(false)) return
  const links = await race(context.pool.use(spec.ranks))
  const layoutKey = await race(keepLayout(version, links))
  const team = new RankTeam(run, links, (failure) => rankFailed.abort(CkptError.from(failure)))
  const conversations = new UpdateConversations(spec, contacts, context.sockets)
  let answers: Promise<void>[] = []
  try {
    await race(open(preparation, team, conversations, layoutKey, untilMs))
    answers = post(preparation, team, conversations, untilMs)
    const told = await race(team.reachedDirectly('looked'))
    if (told === null || team.refusalLasts) {
      context.directCosts.note(version, spec, told ?? team.planFetches(version.ownerNodes))
    }
    team.leave(told ?? DONE, LEAVE_MS)
  } catch (error) {
    team.abort(CkptError.wrap(error).failure, LEAVE_MS)
    throw error
  } finally {
    const left = Promise.all([team.left(), ...answers])
    await Promise.race([left, Bun.sleep(LEAVE_MS + CLOSE_MS)])
    await context.journal.ended((address) => context.pool.keeps(address))
  }
}

async function open(
  { context, spec, version }: DirectPreparation,
  team: RankTeam,
  conversations: UpdateConversations,
  layoutKey: string,
  deadlineMs: number,
): Promise<void> {
  const { buffers, readings } = version
  const memoryAt = memoryAway(version)
  const openMs = Math.min(spec.openMs, deadlineMs - clockMs())
  // the engines are whole: whoever finds this after a crash only ends the conversations
  const ended = { ended: true, ended_ms: Date.now() } as const
  const journalled = conversations.journalled(version).map((one) => ({ ...one, ...ended }))
  await Promise.all([
    team.openDirect(
      { layoutKey, buffers, readings, prepares: true, openMs, deadlineMs, memoryAt },
      conversations.direct,
    ),
    context.journal.conversations(journalled),
  ])
}

/** What the engines answer, also late; what that leaves of them is noted. None rejects. */
function post(
  { context, spec, contacts }: DirectPreparation,
  team: RankTeam,
  { addresses }: UpdateConversations,
  untilMs: number,
): Promise<void>[] {
  team.begin()
  const { closing } = context
  const seconds = Math.max(1, (untilMs - clockMs() + LEAVE_MS) / 1000)
  return contacts.map(async (contact) => {
    const result = await contact.post(contact.map(addresses), spec, seconds, closing, true)
    team.http(contact.ranks, result)
    try {
      const asking = signalWithin(closing, ASK_MS, NO_ANSWER)
      await contact.giveUpDirect(spec.id, false, asking)
    } catch (error) {
      if (closing.aborted) return
      const { message } = CkptError.wrap(error)
      log.warn('{message}', { message })
      await contact.record.save().catch(() => {})
    }
  })
}
