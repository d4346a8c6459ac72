import { createHmac, hkdfSync, timingSafeEqual } from 'node:crypto'
import { curvePublicKey } from '@ckpt/cuda'
import type { TokenDigest } from '../context.ts'

const KEY_BYTES = 32
/** Another word, other keys. */
const SALT = 'ckpt cluster 1'

export interface KeyPair {
  readonly secret: Uint8Array
  readonly public: Uint8Array
}

/**
 * What the daemons of a cluster derive from their token (HKDF with SHA-256). The leader is a server of CURVE: who does not know its
 * public key cannot finish a handshake. Access does not rest on that alone: a hello carries a proof as well.
 */
export interface ClusterKeys {
  readonly leader: KeyPair
  /** Of every follower. */
  readonly follower: KeyPair
  readonly proof: Uint8Array
}

export function deriveKeys(token: TokenDigest): ClusterKeys {
  return {
    leader: keyPair(token, 'leader'),
    follower: keyPair(token, 'follower'),
    proof: derive(token, 'hello'),
  }
}

/** HMAC with SHA-256 over both incarnations and the follower's node rank, as hex. */
export function proofOf(
  key: Uint8Array,
  leader: string,
  follower: string,
  nodeRank: number,
): string {
  const text = JSON.stringify([leader, follower, nodeRank])
  return createHmac('sha256', key).update(text).digest('hex')
}

/** In constant time. */
export function isProof(
  key: Uint8Array,
  proof: string,
  leader: string,
  follower: string,
  nodeRank: number,
): boolean {
  const wanted = Buffer.from(proofOf(key, leader, follower, nodeRank))
  const told = Buffer.from(proof)
  return told.length === wanted.length && timingSafeEqual(told, wanted)
}

function keyPair(token: TokenDigest, name: string): KeyPair {
  const secret = derive(token, name)
  return { secret, public: curvePublicKey(secret) }
}

function derive(token: TokenDigest, name: string): Uint8Array {
  return new Uint8Array(hkdfSync('sha256', token, SALT, name, KEY_BYTES))
}
