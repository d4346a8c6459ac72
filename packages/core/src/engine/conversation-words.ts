import type { ConversationOptions, ConversationPhase } from './conversation-types.ts'

/** What the worker owes a reply to. */
export type Owed =
  | { readonly to: 'handle' | 'first None' | 'second None' }
  | { readonly to: 'list'; readonly bucket: number; readonly sinceMs: number }

export interface HttpResult {
  readonly ok: boolean
  readonly status: number
  readonly message: string
}

/** What the worker was doing when it failed. */
export function describeOwed(owed: Owed): string {
  switch (owed.to) {
    case 'handle':
      return 'while it mapped the ring'
    case 'list':
      return `in bucket ${owed.bucket}`
    case 'first None':
      return 'while it released the ring'
    case 'second None':
      return 'in its post hook'
  }
}

/** What has not happened yet. */
export function describeWait(
  phase: ConversationPhase,
  owed: Owed | null,
  connected: boolean,
): string {
  switch (phase) {
    case 'open':
      return owed !== null && connected
        ? "the engine's worker has connected but has not replied to the handle"
        : 'no worker of the engine has connected'
    case 'transfer':
      return owed?.to === 'list'
        ? `the engine's worker has not replied to the tensor list of bucket ${owed.bucket}`
        : 'not all buckets have been copied'
    case 'release':
      // before 0.4 it runs before that reply
      return "the engine's worker has not replied to the first None (its post hook may run)"
    case 'post':
      if (connected) return "the engine's worker has not left (its post hook runs)"
  }
  return "the engine's request has not returned, though its worker has left"
}

/** Why a conversation that has failed ends at its leave deadline. */
export function describeStay(
  { http, limits }: Pick<ConversationOptions, 'http' | 'limits'>,
  exported: boolean,
  returned: boolean,
): string {
  const waited = seconds(limits.leaveMs)
  if (http && !returned) return `the engine's request had not returned ${waited} after the failure`
  if (!exported) return `no worker connected within ${waited} after the failure`
  return `the engine's worker had not left ${waited} after the failure`
}

/** An answer of the engine that is not a success; status 0: there was none, 2xx: it says so itself, or the daemon does in its place. */
export function describeHttp(result: HttpResult, everConnected: boolean): string {
  const before = everConnected ? '' : ' before its worker had connected'
  return `${howItFailed(result)}${before}: ${result.message.trim() || 'no message'}`
}

function howItFailed({ status }: HttpResult): string {
  if (status === 0) return "the engine's request failed"
  return status < 300 ? "the engine's update failed" : `the engine answered ${status}`
}

export function seconds(milliseconds: number): string {
  return `${Math.round(milliseconds / 100) / 10} s`
}
