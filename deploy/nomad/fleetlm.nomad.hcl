# Front ends and workers of one cluster, found through SRV records of Consul.
#
#   nomad var put nomad/jobs/fleetlm cookie="$(fleetlm cookie)"
#   nomad job run deploy/nomad/fleetlm.nomad.hcl
#
# Clients of Nomad need `max_kill_timeout = "90s"`: their default of 30s cuts every longer kill_timeout.
# docs/deploy/nomad.md describes the kit.

variable "image" {
  type    = string
  default = "fleetlm-web:0.1.0"
}

job "fleetlm" {
  datacenters = ["*"]
  type        = "service"

  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "15s"
    healthy_deadline  = "10m"
    progress_deadline = "20m"
    auto_revert       = true
  }

  group "worker" {
    count = 3

    spread {
      attribute = "${node.unique.id}"
    }

    network {
      port "fleetlm" {
        to = -1 # the same port inside, since a node's name has the port under which others reach it
      }
    }

    service {
      name     = "fleetlm"
      port     = "fleetlm"
      provider = "consul" # Nomad's own services have no DNS

      check { # Consul leaves failing nodes out, so this asks whether the node lives, not whether it is ready
        type     = "script"
        task     = "worker"
        command  = "fleetlm"
        args     = ["health", "--live"]
        interval = "10s"
        timeout  = "5s"
      }
    }

    task "worker" {
      driver       = "docker"
      kill_signal  = "SIGTERM"
      kill_timeout = "60s" # 2 x 25 s (FLEETLM_DRAIN_MS) + 5 s

      config {
        image           = var.image
        command         = "fleetlm"
        args            = ["start", "model:main"]
        ports           = ["fleetlm"]
        init            = true
        readonly_rootfs = true
        cap_drop        = ["all"]
        mount {
          type   = "tmpfs"
          target = "/tmp"
        }
      }

      template { # readable for the user of the image alone; a change restarts nothing by itself
        data        = "{{ with nomadVar \"nomad/jobs/fleetlm\" }}{{ .cookie }}{{ end }}"
        destination = "${NOMAD_SECRETS_DIR}/cookie"
        perms       = "0400"
        uid         = 10001
        gid         = 10001
        change_mode = "noop"
      }

      env {
        DNS_CLUSTER_QUERY      = "_fleetlm._tcp.service.consul."
        FLEETLM_DNS_SERVER     = "${attr.unique.network.ip-address}:8600"
        FLEETLM_NODE_IP        = "${NOMAD_IP_fleetlm}"
        FLEETLM_NODE_PORT      = "${NOMAD_PORT_fleetlm}"
        FLEETLM_BIND           = "*" # the address of the host is not one of the container
        FLEETLM_COOKIE_FILE    = "${NOMAD_SECRETS_DIR}/cookie"
        FLEETLM_REQUIRE_COOKIE = "1"
        FLEETLM_DRAIN_MS       = "25000"
        FLEETLM_LOG            = "json"
      }

      resources {
        cpu    = 1000
        memory = 1024
      }
    }
  }

  group "web" {
    count = 2

    spread {
      attribute = "${node.unique.id}"
    }

    network {
      port "fleetlm" {
        to = -1
      }
      port "http" {
        to = 8000
      }
    }

    service {
      name     = "fleetlm"
      port     = "fleetlm"
      provider = "consul"

      check {
        type     = "script"
        task     = "web"
        command  = "fleetlm"
        args     = ["health", "--live"]
        interval = "10s"
        timeout  = "5s"
      }
    }

    service {
      name     = "fleetlm-web"
      port     = "http"
      provider = "consul"

      check {
        type     = "http"
        path     = "/ready"
        interval = "5s"
        timeout  = "4s"
      }
    }

    task "web" {
      driver         = "docker"
      kill_signal    = "SIGTERM"
      kill_timeout   = "90s" # 25 s (uvicorn) + 2 x 25 s (FLEETLM_DRAIN_MS) + 5 s
      shutdown_delay = "5s"  # Consul has left it out by then, and requests have stopped to come

      config {
        image           = var.image
        command         = "uvicorn"
        args            = ["web:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "25"]
        ports           = ["fleetlm", "http"]
        init            = true
        readonly_rootfs = true
        cap_drop        = ["all"]
        mount {
          type   = "tmpfs"
          target = "/tmp"
        }
      }

      template {
        data        = "{{ with nomadVar \"nomad/jobs/fleetlm\" }}{{ .cookie }}{{ end }}"
        destination = "${NOMAD_SECRETS_DIR}/cookie"
        perms       = "0400"
        uid         = 10001
        gid         = 10001
        change_mode = "noop"
      }

      env {
        DNS_CLUSTER_QUERY      = "_fleetlm._tcp.service.consul."
        FLEETLM_DNS_SERVER     = "${attr.unique.network.ip-address}:8600"
        FLEETLM_NODE_IP        = "${NOMAD_IP_fleetlm}"
        FLEETLM_NODE_PORT      = "${NOMAD_PORT_fleetlm}"
        FLEETLM_BIND           = "*"
        FLEETLM_COOKIE_FILE    = "${NOMAD_SECRETS_DIR}/cookie"
        FLEETLM_REQUIRE_COOKIE = "1"
        FLEETLM_DRAIN_MS       = "25000"
        FLEETLM_LOG            = "json"
      }

      resources {
        cpu    = 500
        memory = 512
      }
    }
  }
}
