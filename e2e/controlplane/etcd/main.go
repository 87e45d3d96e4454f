// Command etcd is the etcd server of the pinned module: the root module of etcd is not published at this version.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
