import { CkptError, type Failure } from '@ckpt/core'
import { signalWithin } from '../../engines/client.ts'
import { log } from '../log.ts'
import type { EngineContact } from './contact.ts'
import type { UpdateConversations } from './conversations.ts'
import type { RunContext } from './run-context.ts'
import type { RankTeam } from './team.ts'
import type { UpdateTimes } from './times.ts'

const NO_ANSWER = { code: 'engine_timeout', message: 'the engine did not answer' } as const

/** An update that has failed. */
export interface FailedUpdate {
  readonly context: Pick<RunContext, 'journal' | 'book' | 'closing' | 'pool'>
  readonly updateId: string
  /** What it would have brought. */
  readonly weightVersion: string | null
  readonly failure: Failure
  /** Null: no rank takes part yet. */
  readonly team: RankTeam | null
  readonly contacts: readonly EngineContact[]
  readonly conversations: UpdateConversations | null
  readonly times: UpdateTimes
}

/**
 * Waits until every rank has left or was given up, and notes what has become of each engine when its own have: what one that does not
 * leave takes is too long for the others' engines.
 *
 * @returns the failure, with what the engine has said of it
 */
export async function leave(failed: FailedUpdate): Promise<Failure> {
  const { context, team, contacts, times } = failed
  const { journal, book, pool } = context
  // a failure that was thrown by the main thread did not reach the ranks yet
  team?.abort(failed.failure, times.leaveMs)
  const untilStuck = Bun.sleep(times.stuckMs)
  const engines = contacts.map(async (contact) => {
    if (team !== null) await Promise.race([team.leftBy(contact.ranks), untilStuck])
    await note(failed, contact)
  })
  const left = team === null ? null : Promise.race([team.left(), untilStuck])
  await Promise.all([left, ...engines])
  const failure = withEngineWords(failed)
  // what has failed counts more than that it cannot be written down, which is tried again with the next mark
  try {
    await journal.ended((address) => pool.keeps(address))
    await book.save()
  } catch (error) {
    log.warn('the journal is not written: {message}', { message: CkptError.wrap(error).message })
  }
  return failure
}

/** Its ranks have left, or were given up. */
async function note(failed: FailedUpdate, contact: EngineContact): Promise<void> {
  const { context, team, times } = failed
  const touched = team?.anySent(contact.ranks) ?? false
  const finished = touched && (team?.allFinished(contact.ranks) ?? false)
  const dialect = team?.dialectOf(contact.ranks) ?? null
  const released = team?.released ?? false
  const fate = { touched, finished, released, version: failed.weightVersion, dialect }
  const within = signalWithin(context.closing, times.callMs, NO_ANSWER)
  await contact.fail(failed.updateId, fate, within)
}

/** The HTTP answer of the engine that failed often says more than the end of the connection. */
function withEngineWords({ failure, conversations }: FailedUpdate): Failure {
  const own = failure.rank === undefined ? undefined : conversations?.contact(failure.rank)
  const result = own?.result ?? null
  if (result === null || result.ok) return failure
  const words = result.message.trim()
  if (words === '' || failure.message.includes(words)) return failure
  const status = result.status === 0 ? '' : ` ${result.status}`
  return { ...failure, message: `${failure.message}; the engine answered${status}: ${words}` }
}
