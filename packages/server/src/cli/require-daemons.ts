import { CkptError, type StatusAnswer, type UpdateRequest } from '@ckpt/core'
import { counted } from './format.ts'

/** Why daemons are missing; empty: none is, or nobody has said. */
export function missingReasons(cluster: StatusAnswer['cluster']): string {
  return (cluster?.missing ?? []).map(({ message }) => message).join('; ')
}

/**
 * Ranks and endpoints only fit together when all daemons are there, or the ranks of the missing ones are known. Returns those.
 *
 * @throws CkptError `leader_lost`, `node_lost`: which daemons are missing, and why
 */
export function requireDaemons(
  cluster: StatusAnswer['cluster'],
  require: NonNullable<UpdateRequest['require']>,
): number[] {
  if (cluster === undefined) return []
  const { joined, nodes, missing = [] } = cluster
  const reasons = missingReasons(cluster)
  if (joined === 0) throw new CkptError('leader_lost', reasons || 'the leader is not there')
  const known = missing.every(({ ranks }) => ranks.length > 0)
  if (missing.length > 0 && require === 'survivors' && known) {
    return missing.flatMap(({ ranks }) => ranks)
  }
  if (missing.length > 0) {
    const verb = missing.length === 1 ? 'is' : 'are'
    const message = `${missing.length} of ${counted(nodes, 'daemon')} ${verb} missing: ${reasons}`
    throw new CkptError('node_lost', message)
  }
  if (joined >= nodes) return []
  // a follower whose leader has not answered now knows no more
  const message = `${joined} of ${counted(nodes, 'daemon')} have joined, see \`ckpt status\``
  throw new CkptError('node_lost', message)
}
